"""Slates from the rows of a log: a row an item, a row a slate with a column a slot, or a row a slate with lists.

R slates with K items in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from slaterl.data.formats.log_columns import Layout
from slaterl.data.formats.log_values import (
    Ids,
    Place,
    first_empty,
    first_of,
    ids_of,
    lists_of,
    numbers_of,
    zero_or_one,
)
from slaterl.errors import UserError

STRAY = 0.01  # share of the rows at later positions


@dataclass(frozen=True)
class Shown:
    """Slates in the order of their sessions and turns, the items of one slate side by side.

    Attributes:
        session: [R] numbers of the sessions, which rise.
        time: [R] turns or times, which rise in a session.
        rows: [R] row of the file that holds the slate, or its first item; with a hole, an item that is out of place.
        sizes: [R] items of each slate.
        holes: [R] bool, whether a position is missing between or before others, or is one that hardly any slate has.
        items: codes [K] and names of the items.
        clicks: [K] uint8.
        propensity: [K] float32, or None.
    """

    session: np.ndarray
    time: np.ndarray
    rows: np.ndarray
    sizes: np.ndarray
    holes: np.ndarray
    items: Ids
    clicks: np.ndarray
    propensity: np.ndarray | None


def slates_of(frame: pl.DataFrame, layout: Layout, place: Place, session: np.ndarray, time: np.ndarray) -> Shown:
    """Return the slates of a log.

    Args:
        session, time: numbers of the sessions and the turns, [rows of the file].

    Raises:
        UserError: names the first row with a wrong value, and rows that contradict each other.
    """
    if layout.form == "long":
        return _from_items(frame, layout, place, session, time)
    return _from_slates(frame, layout, place, session, time)


def in_order(**keys: np.ndarray) -> np.ndarray:
    """Return the order of rows by several keys; equal rows keep theirs."""
    if all(key.dtype.kind in "iu" for key in keys.values()):
        low = [int(key.min()) for key in keys.values()]
        widths = [int(key.max()) - least + 1 for key, least in zip(keys.values(), low, strict=True)]
        if math.prod(widths) < 2**63:  # one number is sorted four times as fast as three
            packed = np.zeros(len(next(iter(keys.values()))), np.int64)
            for key, least, width in zip(keys.values(), low, widths, strict=True):
                packed = packed * width + (key.astype(np.int64) - least)
            return np.argsort(packed, kind="stable")
    return pl.DataFrame(keys).select(pl.arg_sort_by(list(keys), maintain_order=True)).to_series().to_numpy()


def _from_items(frame: pl.DataFrame, layout: Layout, place: Place, session: np.ndarray, time: np.ndarray) -> Shown:
    item, click = layout.item[0], layout.click[0]
    clicks, propensity = _clicks(frame.drop_in_place(click), click, place), None
    column = frame.drop_in_place(item)
    if (row := first_empty(column)) is not None:
        raise place.wrong(item, row, None, "an item id")
    items = ids_of(column)
    _check_numbers(place, item, items)
    if layout.propensity:
        name = layout.propensity[0]
        propensity = _chances(frame.drop_in_place(name), name, place)
    keys = {"session": session, "time": time}
    if layout.position:
        numbers = numbers_of(frame[layout.position])
        if (row := first_of(numbers.is_null())) is not None:
            raise place.wrong(layout.position, row, frame[layout.position][row], "a number")
        # slots count from 0 or 1, or by tens; only their order counts
        levels = numbers.unique().sort()
        keys["position"] = levels.search_sorted(numbers).to_numpy()
    order = in_order(**keys)
    session, time = session[order], time[order]
    new = np.concatenate([[True], (np.diff(session) != 0) | (np.diff(time) != 0)])
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, len(new)))
    holes, rows = np.zeros(len(starts), bool), order[starts]
    if layout.position:
        position = keys["position"][order]
        twice = (np.diff(position) == 0) & ~new[1:]
        if twice.any():
            first, second = sorted(order[twice.argmax() :][:2].tolist())
            found = f"{layout.position} {frame[layout.position][first]} of {place(first)} appears again in row {second}"
            raise UserError(f"{place.where}: {found}; expected one row for each session, turn and position")
        odd = _slots(position)[position] != np.arange(len(new)) - np.repeat(starts, sizes)
        holes = np.logical_or.reduceat(odd, starts)
        if odd.any():
            at = np.flatnonzero(odd)
            slate, others = np.searchsorted(starts, at, side="right") - 1, np.bincount(position)[position[at]]
            rarest = np.lexsort((others, slate))  # the rarest position of a slate is most likely the wrong one
            faulty, first_of_each = np.unique(slate[rarest], return_index=True)
            rows[faulty] = order[at[rarest[first_of_each]]]
    chances = None if propensity is None else propensity[order]
    codes = Ids(items.codes[order], items.names)
    return Shown(session[starts], time[starts], rows, sizes, holes, codes, clicks[order], chances)


def _slots(position: np.ndarray) -> np.ndarray:
    """Return the slot of each position that occurs, by its place among all: 0, 1, ...; -1 of a stray one.

    A position is stray if hardly any slate has it, though many have later ones. A wrong number in one row would
    otherwise shift all slates.

    Args:
        position: the place of each row's position among all that occur, [rows of the file].
    """
    counts = np.bincount(position)
    later = np.append(np.maximum.accumulate(counts[::-1])[::-1][1:], 0)
    stray = (counts <= STRAY * later) | ((counts == 1) & (later > 2))
    return np.where(stray, -1, np.cumsum(~stray) - 1)


def _from_slates(frame: pl.DataFrame, layout: Layout, place: Place, session: np.ndarray, time: np.ndarray) -> Shown:
    order = in_order(session=session, time=time)
    session, time = session[order], time[order]
    again = (np.diff(session) == 0) & (np.diff(time) == 0)
    if again.any() and place.numbered:
        first, second = sorted(order[again.argmax() :][:2].tolist())
        raise UserError(f"{place.where}: {layout.turn} of {place(first)} appears again in row {second}")
    columns = (layout.item, layout.click, layout.propensity)
    if layout.form == "wide":
        items, clicks, chances = (_side_by_side(frame, layout.item, of) for of in columns)
    else:
        items, clicks, chances = (lists_of(place.where, of[0], frame[of[0]]) if of else None for of in columns)
    name = layout.item[0]
    assert items is not None
    sizes = _lengths(items)
    for column, of in ((clicks, layout.click), (chances, layout.propensity)):
        if column is not None:
            _check_sizes(place, of[0], column, items, sizes, of is layout.click)
    row_of = np.repeat(np.arange(len(sizes)), sizes)
    flat = _flat(items)
    if (at := first_empty(flat)) is not None:
        raise place.wrong(name, int(row_of[at]), None, "an item id")
    if layout.clicked:
        listed = lists_of(place.where, layout.clicked, frame[layout.clicked])
        clicked = _clicked(place, layout.clicked, listed, flat, row_of)
    else:
        assert clicks is not None
        clicked = _clicks(_flat(clicks), layout.click[0], place, row_of)
    chance = None if chances is None else _chances(_flat(chances), layout.propensity[0], place, row_of)
    codes = ids_of(flat)
    _check_numbers(place, name, codes, row_of)
    # the same order for the items inside of the slates
    starts = np.cumsum(sizes) - sizes
    sorted_sizes = sizes[order]
    inside = np.arange(len(flat)) - np.repeat(np.cumsum(sorted_sizes) - sorted_sizes, sorted_sizes)
    flat_order = np.repeat(starts[order], sorted_sizes) + inside
    return Shown(
        session,
        time,
        order,
        sorted_sizes,
        np.zeros(len(order), bool),
        Ids(codes.codes[flat_order], codes.names),
        clicked[flat_order],
        None if chance is None else chance[flat_order],
    )


def _side_by_side(frame: pl.DataFrame, items: tuple[str, ...], columns: tuple[str, ...]) -> pl.Series | None:
    """Join the columns of the slots to lists; slots without an item are left out."""
    if not columns:
        return None
    frame = frame.with_columns(pl.col(pl.Float32, pl.Float64).fill_nan(None))  # a gap, as pandas writes it
    if frame[columns[0]].dtype == pl.String or frame[items[0]].dtype == pl.String:
        frame = frame.with_columns(pl.col(pl.String).replace("", None))
    shown = [
        pl.when(pl.col(item).is_not_null()).then(pl.col(column)) for item, column in zip(items, columns, strict=True)
    ]
    return frame.select(pl.concat_list(shown).list.drop_nulls().alias(columns[0])).to_series()


def _lengths(lists: pl.Series) -> np.ndarray:
    return lists.list.len().fill_null(0).to_numpy().astype(np.int64)


def _flat(lists: pl.Series) -> pl.Series:
    """Return the elements of all lists; an empty list has none."""
    return lists.filter(lists.list.len() > 0).explode()


def _check_sizes(
    place: Place, name: str, column: pl.Series, items: pl.Series, sizes: np.ndarray, are_clicks: bool
) -> None:
    """Raise UserError unless each list is as long as its slate."""
    own = _lengths(column)
    wrong = own != sizes
    if not wrong.any():
        return
    if are_clicks:
        ids = pl.DataFrame({"row": np.repeat(np.arange(len(own)), own), "id": _flat(column).cast(pl.String)})
        shown = pl.DataFrame({"row": np.repeat(np.arange(len(sizes)), sizes), "id": _flat(items).cast(pl.String)})
        if ids.join(shown, on=["row", "id"], how="anti").is_empty():
            say = f"dataset.columns.clicked={name}"
            raise UserError(f"{place.where}: {name} looks like the ids of the clicked items; say so with {say}")
    row = int(wrong.argmax())
    raise UserError(
        f"{place.where}: {name} of {place(row)}: found {own[row]} values, expected {sizes[row]}, as the slate has"
    )


def _clicked(place: Place, name: str, listed: pl.Series, flat: pl.Series, row_of: np.ndarray) -> np.ndarray:
    """Return which of the shown items [K] are among the clicked ids of their row."""
    counts = _lengths(listed)
    ids = pl.DataFrame({"row": np.repeat(np.arange(len(counts)), counts), "id": _flat(listed).cast(pl.String)})
    shown = pl.DataFrame({"row": row_of, "id": flat.cast(pl.String)})
    elsewhere = ids.join(shown, on=["row", "id"], how="anti")
    if not elsewhere.is_empty():
        raise place.wrong(name, elsewhere["row"][0], elsewhere["id"][0], "an item of the slate")
    marked = shown.join(ids.unique().with_columns(yes=True), on=["row", "id"], how="left", maintain_order="left")
    return marked["yes"].fill_null(False).cast(pl.UInt8).to_numpy()


def _check_numbers(place: Place, name: str, ids: Ids, row_of: np.ndarray | None = None) -> None:
    """Raise UserError if an id is the text NaN while all others are numbers: then it stands for a gap."""
    gaps = [code for code, one in enumerate(ids.names) if isinstance(one, str) and one.strip().lower() == "nan"]
    if not gaps:
        return
    others = pl.Series([str(one) for code, one in enumerate(ids.names) if code not in gaps], dtype=pl.String)
    if others.cast(pl.Float64, strict=False).null_count() == 0:
        at = int(np.isin(ids.codes, gaps).argmax())
        raise place.wrong(name, at if row_of is None else int(row_of[at]), ids.names[gaps[0]], "an item id")


def _clicks(column: pl.Series, name: str, place: Place, row_of: np.ndarray | None = None) -> np.ndarray:
    clicks, wrong = zero_or_one(column)
    if wrong.any():
        at = int(wrong.argmax())
        raise place.wrong(name, at if row_of is None else int(row_of[at]), column[at], "0 or 1")
    return clicks


def _chances(column: pl.Series, name: str, place: Place, row_of: np.ndarray | None = None) -> np.ndarray:
    values = numbers_of(column).to_numpy()
    wrong = ~((values > 0) & (values <= 1))  # also NaN
    if wrong.any():
        at = int(wrong.argmax())
        raise place.wrong(name, at if row_of is None else int(row_of[at]), column[at], "a probability above 0")
    return values.astype(np.float32)
