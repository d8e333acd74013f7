"""The columns of a log: which of them holds what, by the names that people use or by dataset.columns."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slaterl.errors import UserError

# names in small letters without other signs, in the order of preference
TURNS = ("turn", "turnid", "timestep", "step")
TIMES = (
    "timestamp", "time", "datetime", "eventtime", "createdat", "impressiontime", "requesttime", "ts", "date", "t",
)  # fmt: skip
KNOWN = {
    "session": (
        "session", "sessionid", "visit", "visitid", "episode", "episodeid", "user", "userid", "uid", "visitor",
        "visitorid", "customer", "customerid", "client", "clientid", "cookie", "cookieid", "deviceid",
    ),
    "turn": (*TURNS, *TIMES),
    "item": (
        "item", "itemid", "product", "productid", "article", "articleid", "newsid", "movieid", "videoid", "songid",
        "contentid", "documentid", "docid", "adid", "asin", "sku",
    ),
    "position": ("position", "pos", "rank", "slot", "itemposition", "positionid"),
    "click": ("click", "clicked", "isclick", "isclicked", "clicks", "label"),
    "propensity": ("propensity", "propensityscore", "pscore", "actionprob", "loggingprob", "prob", "probability"),
    "slate": ("slate", "slates", "items", "itemids", "shown", "shownitems", "impressions", "recommendations"),
    "clicks": ("clicks", "click", "clicked", "labels"),
}  # fmt: skip


FORMS = {
    "long": "a row an item",
    "wide": "a row a slate, a column a slot",
    "lists": "a row a slate, in lists",
}


@dataclass(frozen=True)
class Layout:
    """Names of a log's columns.

    Attributes:
        form: long (a row an item), wide (a row a slate, a column a slot) or lists (a row a slate, in lists).
        session: columns whose combination is the session.
        turn: a number or a time; None: the order of the rows.
        item, click, propensity: one column, or one for each slot in the form wide.
        clicked: a column with lists of clicked ids instead of `click`.
    """

    form: str
    session: tuple[str, ...]
    turn: str | None
    item: tuple[str, ...]
    click: tuple[str, ...]
    clicked: str | None
    position: str | None
    propensity: tuple[str, ...]

    @property
    def used(self) -> list[str]:
        """The columns to load, each once."""
        others = (self.turn, self.clicked, self.position)
        named = (*self.session, *self.item, *self.click, *self.propensity, *(name for name in others if name))
        return list(dict.fromkeys(named))


def layout_of(where: str, found: Sequence[str], given: Mapping[str, Any], timed: bool) -> Layout:
    """Find out which column holds what, and use every column that was named.

    Args:
        found: names of the file's columns.
        given: the settings dataset.columns.
        timed: whether a time is needed, for session_gap; else a turn number is preferred.

    Raises:
        UserError: a column that was named does not exist or has no use, or none has a known name.
    """
    of = _Finder(where, found, given)
    of.check_names()
    layout = _layout_of(where, of, given, timed)
    shown = ("slate", "clicks") if layout.form == "lists" else ("item", "click")
    own: dict[str, tuple[str | None, ...]] = dict(zip(shown, (layout.item, layout.click), strict=True))
    own |= {"session": layout.session, "turn": (layout.turn,), "clicked": (layout.clicked,)}
    own |= {"position": (layout.position,), "propensity": layout.propensity}
    for role, named in given.items():
        if named is not None and not any(own.get(role, ())):
            raise of.unused(role, named, FORMS[layout.form])
    return layout


def _layout_of(where: str, of: _Finder, given: Mapping[str, Any], timed: bool) -> Layout:
    session, turn = of.several("session"), of.one("turn", (*TIMES, *TURNS) if timed else None)
    if not session:
        raise of.missing("session", "a session or a user")
    slots, slot_clicks = of.numbered("item"), of.numbered("click")
    named = given.get("slate") is not None or of.one("item") is None  # else `impressions` can be a count
    slate, clicked = of.one("slate") if named else None, of.one("clicked")
    if slate and not slots:
        clicks = of.one("clicks")
        if not (clicked or clicks):
            raise of.missing("clicks", "the clicks on a slate")
        # a list of ids replaces the list of zeros and ones
        chosen = () if clicked else (str(clicks),)
        return Layout("lists", session, turn, (slate,), chosen, clicked, None, of.several("propensity"))
    if slots:
        if not slot_clicks and not clicked:
            raise of.missing("click", f"the clicks on {slots[0]}, {slots[1]}, ...")
        chances = of.numbered("propensity")
        for columns, what in ((slot_clicks, "clicks"), (chances, "propensities")):
            if columns and len(slots) != len(columns) and not (what == "clicks" and clicked):
                counts = f"{len(slots)} columns of items ({slots[0]}, ...), {len(columns)} of {what}"
                raise UserError(f"{where}: found {counts}; expected a column of {what} for each slot")
        return Layout("wide", session, turn, slots, () if clicked else slot_clicks, clicked, None, chances)
    item, click = of.one("item"), of.one("click")
    if item is None:
        raise of.missing("item", "items", "slate")
    if click is None:
        raise of.missing("click", "clicks", "clicks")
    if turn is None:
        raise of.missing("turn", "the turn or the time of a row")
    return Layout("long", session, turn, (item,), (click,), None, of.one("position"), of.several("propensity"))


class _Finder:
    def __init__(self, where: str, found: Sequence[str], given: Mapping[str, Any]) -> None:
        self.where, self.found = where, list(found)
        self.given = {role: given.get(role) for role in (*KNOWN, "clicked")}
        self.by_name: dict[str, str] = {}
        for name in reversed(self.found):
            self.by_name[_plain(name)] = name

    def several(self, role: str) -> tuple[str, ...]:
        """Return the columns of a role; () if there are none."""
        chosen = self.given[role]
        if isinstance(chosen, list):
            return tuple(self._there(role, name) for name in chosen)
        one = self.one(role)
        return () if one is None else (one,)

    def one(self, role: str, names: Sequence[str] | None = None) -> str | None:
        """Return the column of a role, as given or by its name; None if there is none."""
        chosen = self.given[role]
        if chosen is not None:
            # a list or a common beginning names the slots of the form wide
            return None if isinstance(chosen, list) or self._begins(role) else self._there(role, chosen)
        taken = {name for name in self.given.values() if isinstance(name, str)}
        known = (self.by_name.get(name) for name in names or KNOWN.get(role, ()))
        return next((name for name in known if name is not None and name not in taken), None)

    def numbered(self, role: str) -> tuple[str, ...]:
        """Return the columns of the slots, such as item_0, item_1, ...; () if there are fewer than two."""
        chosen = self.given[role]
        if isinstance(chosen, list):
            return tuple(self._there(role, name) for name in chosen)
        if chosen is not None:
            return self._begins(role)
        if self.given["slate"] is not None and role != "propensity":
            return ()
        groups: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        for name in self.found:
            if match := re.fullmatch(r"(.*?)[^0-9a-zA-Z]?(\d+)", name):
                groups[_plain(match[1])].append((int(match[2]), name))
        names = next((groups[name] for name in KNOWN[role] if len(groups.get(name, ())) > 1), [])
        return tuple(name for _, name in sorted(names))

    def _begins(self, role: str) -> tuple[str, ...]:
        """Return the numbered columns that begin with the given text, if no column has exactly this name."""
        chosen = self.given[role]
        if not isinstance(chosen, str) or chosen in self.found:
            return ()
        pattern = re.compile(re.escape(chosen) + r"[^0-9a-zA-Z]?(\d+)")
        numbers = [(int(match[1]), name) for name in self.found if (match := pattern.fullmatch(name))]
        return tuple(name for _, name in sorted(numbers))

    def check_names(self) -> None:
        """Refuse names that no column has, and that no numbered columns begin with."""
        for role, chosen in self.given.items():
            for name in chosen if isinstance(chosen, list) else [chosen]:
                if name is not None and not self._begins(role):
                    self._there(role, name)

    def _there(self, role: str, name: str) -> str:
        if name not in self.found:
            raise UserError(f"dataset.columns.{role}={name}: no such column in {self.where}; {self._listed()}")
        return name

    def unused(self, role: str, name: Any, form: str) -> UserError:
        """Say that a column was named in vain, because of the form of the log."""
        shown = f"[{','.join(name)}]" if isinstance(name, list) else name
        return UserError(f"dataset.columns.{role}={shown}: {self.where} is read as {form}, which has no use for it")

    def missing(self, role: str, what: str, other: str | None = None) -> UserError:
        ways = f"dataset.columns.{role}=<column>" + (f" or dataset.columns.{other}=<column>" if other else "")
        return UserError(f"{self.where}: no column for {what}; {self._listed()}; name it with {ways}")

    def _listed(self) -> str:
        shown = ", ".join(self.found[:30]) + (", ..." if len(self.found) > 30 else "")
        return f"found {shown}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
