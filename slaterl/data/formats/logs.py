"""Read a log of what was shown and clicked: any ids, any order of rows, sessions of any length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slaterl.data.formats.tables import fingerprint, open_table
from slaterl.data.sessions import Sessions
from slaterl.data.trajectories import Trajectories, smallest_int
from slaterl.data.vocabulary import Vocabulary
from slaterl.errors import UserError

FRAME_0 = "the items 0, 1, ... without clicks, made on import: the log begins with the first slate"
LARGEST = 8 * 2**30  # bytes of the padded slates and clicks


@dataclass(frozen=True)
class Log:
    """What a log holds.

    Attributes:
        data: trajectories of N sessions; with `lengths` if these differ, with `truncated` where dataset.max_turns cut,
            with `group` if sessions of the file have several pieces.
        items: the log's own item ids.
        sessions: the log's own session ids.
        about: plain values about the file and what was left out.
        warnings: for the card.
    """

    data: Trajectories
    items: Vocabulary
    sessions: Sessions
    about: dict[str, Any]
    warnings: list[str]


def read_log(path: str, settings: Mapping[str, Any]) -> Log:
    """Read a log as conf/dataset/log.yaml describes it.

    Sessions come in the order of their ids and slates in the order of their turns, whatever the order of the rows.

    Args:
        path: a CSV or Parquet file, or a folder of Parquet files.
        settings: the other settings of dataset=log.

    Raises:
        UserError: names the file, the column and the row, or the setting that helps.
    """
    table = open_table(path, settings["separator"])  # first, because it says if polars is missing
    from slaterl.data.formats.log_columns import FORMS, layout_of
    from slaterl.data.formats.log_shapes import slates_of
    from slaterl.data.formats.log_values import Place, first_empty, ids_of, joined, seconds_of, times_of

    before, gap = fingerprint(path), settings["session_gap"]
    layout = layout_of(path, table.columns, settings["columns"], timed=gap is not None)
    frame = table.load(layout.used)
    if frame.is_empty():
        raise UserError(f"{path}: {layout.item[0]}: holds no rows")
    names = joined(frame, layout.session)
    if (row := first_empty(names)) is not None:
        raise UserError(f"{path}: {', '.join(layout.session)} of row {row}: empty")
    turns, unit = None if layout.turn is None else frame[layout.turn], None
    place = Place(path, names, turns)
    time = np.arange(len(frame))
    if layout.turn is not None and turns is not None:
        time, unit = times_of(place, layout.turn, turns)
        place = Place(path, names, turns, numbered=unit is None)
    if gap is not None and unit is None:
        lack = "the log has no times" if layout.turn is None else f"{layout.turn} of {path} holds no times"
        raise UserError(f"dataset.session_gap={gap}: {lack}; name them with dataset.columns.turn=<column>")
    ids = ids_of(names)
    shown = slates_of(frame, layout, place, ids.codes, time)
    rows = len(frame)
    session_ids = ids.names
    del frame, names, turns, ids
    if fingerprint(path) != before:
        raise UserError(f"{path}: changed while it was read; run the command again")

    kept, dropped, size = _of_one_size(path, shown, settings, place)
    inside = np.repeat(kept, shown.sizes)
    codes, clicks = shown.items.codes[inside].reshape(-1, size), shown.clicks[inside].reshape(-1, size)
    codes, items = _vocabulary(codes, clicks, shown.items.names)
    chances = None if shown.propensity is None else shown.propensity[inside].reshape(-1, size)
    session, moment = shown.session[kept], shown.time[kept]
    first = np.diff(session, prepend=-1) != 0
    new = first.copy()
    if gap is not None and unit is not None:
        new[1:] |= np.diff(moment) * unit > seconds_of(gap)
    new, cut = _cut(new, settings["max_turns"])
    data = _padded(path, new, cut, codes, clicks, chances, len(items))
    cuts = gap is not None or settings["max_turns"] is not None
    parts = np.add.reduceat(new.astype(int), np.flatnonzero(first)).tolist() if cuts else None
    if parts and max(parts) > 1:
        data.group = torch.from_numpy(np.repeat(np.arange(len(parts), dtype=np.int32), parts))
    sessions = Sessions([session_ids[code] for code in session[first].tolist()], parts)
    sizes = {"num_items": len(items), "slate_size": size, "episode_length": data.slates.shape[1] - 1}
    for setting, found in sizes.items():
        if settings[setting] not in (None, found):
            raise UserError(f"dataset.{setting}={settings[setting]}: {path} has {found}")
    if len(items) < size:
        raise UserError(f"{path}: slates of {size} items, but only {len(items)} different items in the log")
    about = {"source": Path(path).name, "form": FORMS[layout.form], "rows": rows, "frame_0": FRAME_0}
    about |= {"dropped_slates": dropped} if dropped else {}
    return Log(data, items, sessions, about, _warnings(data, items, dropped, int(kept.sum())))


def _of_one_size(path: str, shown: Any, settings: Mapping[str, Any], place: Any) -> tuple[np.ndarray, int, int]:
    """Return which slates [R] have the size of most, how many have not, and this size.

    Raises:
        UserError: slates differ in size and none may be left out; or none is left.
    """
    sizes, counts = np.unique(shown.sizes, return_counts=True)
    if sizes[-1] == 0:
        raise UserError(f"{path}: no slate has an item")
    some = counts * (sizes > 0)
    size = settings["slate_size"] or int(sizes[some == some.max()][-1])
    wrong = (shown.sizes != size) | shown.holes
    if not wrong.any():
        return ~wrong, 0, size
    told = ", ".join(f"{count:,} of {size}" for size, count in zip(sizes.tolist(), counts.tolist(), strict=True))
    with_holes = int((shown.holes & (shown.sizes == size)).sum())
    if with_holes:
        row = int(shown.rows[(shown.holes & (shown.sizes == size)).argmax()])
        told += f"; {with_holes:,} of {size} lack a position, or have one that hardly any slate has: first in row {row}"
    alone = " (or say with dataset.columns.slate and clicks, instead of item and click, that a row is a slate)"
    alone = alone if with_holes and size == 1 else ""
    first = place(int(shown.rows[wrong.argmax()]))
    if settings["ragged"] == "refuse":
        raise UserError(
            f"{path}: slates of different sizes: {told}; the first that is not one of {size} whole items is that of "
            f"{first}; dataset.ragged=drop leaves {wrong.sum():,} slates out{alone}"
        )
    if wrong.all() or size == 0:
        raise UserError(f"{path}: no slate of {size} items is left; sizes: {told}")
    return ~wrong, int(wrong.sum()), size


def _vocabulary(codes: np.ndarray, clicks: np.ndarray, names: Any) -> tuple[np.ndarray, Vocabulary]:
    """Count the items of slates [R, S], and number those that are left 0..N-1."""
    shown = np.bincount(codes.ravel(), minlength=len(names))
    clicked = np.bincount(codes.ravel()[clicks.ravel() > 0], minlength=len(names))
    there = shown > 0
    if not there.all():
        codes = (np.cumsum(there) - 1)[codes]
        names = [name for name, kept in zip(names, there.tolist(), strict=True) if kept]
    return codes, Vocabulary(names, shown[there].tolist(), clicked[there].tolist())


def _cut(new: np.ndarray, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Cut sessions into pieces of at most `most` turns.

    Args:
        new: [R] whether a slate begins a session.

    Returns:
        the same with the pieces, and whether the last slate [N] of each piece is followed by its session's next one.
    """
    starts = np.flatnonzero(new)
    turn = np.arange(len(new)) - np.repeat(starts, np.diff(np.append(starts, len(new))))
    pieces = new | (turn % most == 0) if most else new
    return pieces, np.append((pieces & ~new)[np.flatnonzero(pieces)][1:], False)


def _padded(
    path: str,
    new: np.ndarray,
    cut: np.ndarray,
    codes: np.ndarray,
    clicks: np.ndarray,
    chances: np.ndarray | None,
    num_items: int,
) -> Trajectories:
    """Make trajectories of slates [R, S], with frame 0 and with padding after shorter sessions."""
    starts = np.flatnonzero(new)
    lengths = np.diff(np.append(starts, len(new)))
    count, horizon, size = len(starts), int(lengths.max()), codes.shape[1]
    width = torch.empty((), dtype=smallest_int(num_items)).element_size()
    if (padded := count * (horizon + 1) * size * (width + 1)) > LARGEST:
        found = f"{count:,} sessions, the longest of {horizon:,} turns, take {padded / 2**30:.0f} GiB when padded"
        raise UserError(f"{path}: {found}; dataset.max_turns=<n> or dataset.session_gap=30m cuts long ones")
    session = np.cumsum(new) - 1
    turn = np.arange(len(new)) - starts[session]

    def filled(values: np.ndarray, dtype: torch.dtype, frame_0: int) -> Tensor:
        column = torch.zeros(count, horizon + frame_0, size, dtype=dtype)
        column.numpy()[session, turn + frame_0] = values
        return column

    slates = filled(codes, smallest_int(num_items), 1)
    slates[:, 0] = torch.arange(size).clamp(max=num_items - 1)
    equal = bool((lengths == horizon).all())
    return Trajectories(
        slates,
        filled(clicks, torch.uint8, 1),
        lengths=None if equal else torch.from_numpy(lengths.astype(np.int32)),
        truncated=torch.from_numpy(cut) if cut.any() else None,
        propensity=None if chances is None else filled(chances, torch.float32, 0),
    )


def _warnings(data: Trajectories, items: Vocabulary, dropped: int, kept: int) -> list[str]:
    found = []
    if dropped:
        found.append(f"{dropped:,} of {dropped + kept:,} slates of another size were left out.")
    if len(data) == 1:
        found.append("The log has one session: nothing can be held out.")
    if len(items) == 1:
        found.append("The log has one item: there is nothing to choose.")
    if not any(items.clicked):
        found.append("The log has no clicks.")
    if items.ids and isinstance(items.ids[0], str):
        names, alike = list(map(str, items.ids)), dict[str, str]()
        twins = [(alike[key], name) for name in names if alike.setdefault(key := _folded(name), name) != name]
        if twins:
            pair = " and ".join(map(repr, twins[0]))
            found.append(f"{len(twins):,} item ids differ from others in case or blanks only, such as {pair}.")
    return found


def _folded(name: str) -> str:
    return "".join(name.casefold().split())
