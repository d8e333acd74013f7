"""Rows, the common form of all sources, and the checks that turn them into sessions.

R rows, S slots, N sessions, L rows per session.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from slaterl.errors import UserError
from slaterl.runs.files import first_line

LOG_FIELDS = ("session_id", "turn", "slate", "clicks")

Session = tuple[Any, np.ndarray, np.ndarray]  # name, slates [L, S], clicks [L, S]


@dataclass(frozen=True)
class Rows:
    """The content of a source: one row per slate shown, in the order of the source.

    Attributes:
        where: name of the source in messages.
        fields: the source's own names of session, turn, slate and clicks.
        sessions: [R] names or numbers.
        turns: [R] numbers.
        slates: [R, S] item ids, any type.
        clicks: [R, S] any type.
        numbered: whether messages may give row numbers; False if users cannot count the source's rows.
        has_frame_0: whether each session starts with the frame of reset; None if the length tells.
        policy_id: [N] int16, the behaviour policy of each session, in the order of first appearance.
        exported: metadata that slaterl stored in the source when it wrote it.
    """

    where: str
    fields: tuple[str, str, str, str]
    sessions: np.ndarray
    turns: np.ndarray
    slates: np.ndarray
    clicks: np.ndarray
    numbered: bool = True
    has_frame_0: bool | None = False
    policy_id: Tensor | None = None
    exported: dict[str, Any] | None = None

    def place(self, row: int) -> str:
        return place_of(self.sessions, self.turns, row, self.numbered)


def rows_of_sessions(
    where: str,
    sessions: Iterable[Session],
    slate_size: int,
    *,
    has_frame_0: bool | None,
    policy_id: Tensor | None = None,
    exported: dict[str, Any] | None = None,
) -> Rows:
    """Join the sessions of a source that stores each session in one piece.

    Raises:
        UserError: the source has no sessions; or a session has no rows, another slate size or clicks of another shape.
    """
    names, all_slates, all_clicks = [], [], []
    for name, slates, clicks in sessions:
        if slates.ndim != 2 or slates.shape[1] != slate_size or len(slates) == 0:
            found = f"found {list(slates.shape)}, expected [turns, {slate_size}]"
            raise UserError(f"{where}: slate of session {name}: {found}")
        if clicks.shape != slates.shape:
            found = f"found {list(clicks.shape)}, expected {list(slates.shape)}, the shape of the slate"
            raise UserError(f"{where}: clicks of session {name}: {found}")
        names.append(name)
        all_slates.append(slates)
        all_clicks.append(clicks)
    if not names:
        raise UserError(f"{where}: holds no trajectories")
    lengths = [len(slates) for slates in all_slates]
    column = np.empty(len(names), dtype=object)
    column[:] = names
    return Rows(
        where,
        LOG_FIELDS,
        sessions=np.repeat(column, lengths),
        turns=np.concatenate([np.arange(length) for length in lengths]),
        slates=np.concatenate(all_slates),
        clicks=np.concatenate(all_clicks),
        numbered=False,
        has_frame_0=has_frame_0,
        policy_id=policy_id,
        exported=exported,
    )


def by_session(rows: Rows, num_items: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Check all values and group the rows by session, in the order of first appearance.

    Args:
        lengths: accepted numbers of rows per session. All sessions must have the same number.

    Returns:
        slates and clicks, both [N, L, S].

    Raises:
        UserError: names the first wrong session, turn or value.
    """
    session, turn, slate, clicks = rows.fields
    if len(rows.slates) == 0:
        raise UserError(f"{rows.where}: {slate}: holds no trajectories")
    try:
        codes, names = pd.factorize(rows.sessions)  # numbered in the order of first appearance
    except TypeError as error:
        raise UserError(f"{rows.where}: {session}: expected numbers or names ({first_line(error)})") from error
    if (codes < 0).any():
        raise UserError(f"{rows.where}: {session} of row {first_true(codes < 0)[0]}: empty")
    _check_numbers(rows, turn, rows.turns, low=-(2**53), high=2**53, expected="a whole number")
    rows = replace(rows, turns=rows.turns.astype(np.int64))
    _check_numbers(rows, slate, rows.slates, low=0, high=num_items - 1, expected=f"item ids 0..{num_items - 1}")
    _check_numbers(rows, clicks, rows.clicks, low=0, high=1, expected="0 or 1", kinds="biuf")
    order = np.argsort(codes, kind="stable")
    _check_turns(rows, codes, order)
    counts = np.bincount(codes)
    _check_counts(rows, names, counts, lengths)
    shape = (len(counts), counts[0], -1)
    largest = np.int32 if num_items <= 2**31 else np.int64
    return (
        torch.from_numpy(rows.slates.astype(largest)[order].reshape(shape)),
        torch.from_numpy(rows.clicks.astype(np.uint8)[order].reshape(shape)),
    )


def _check_numbers(
    rows: Rows, field: str, values: np.ndarray, *, low: int, high: int, expected: str, kinds: str = "iuf"
) -> None:
    """Raise UserError at the first of the values [R, ...] that is not a whole number from low to high.

    `kinds` are the accepted kinds of NumPy types.
    """
    if values.dtype.kind not in kinds:
        raise UserError(f"{rows.where}: {field}: found values of type {values.dtype}, expected {expected}")
    wrong = (values < low) | (values > high)
    if values.dtype.kind == "f":
        wrong |= values != np.floor(values)  # also NaN
    if wrong.any():
        place = first_true(wrong)
        found = f"found {values[place].item()}, expected {expected}"
        raise UserError(f"{rows.where}: {field} of {rows.place(place[0])}: {found}")


def _check_turns(rows: Rows, codes: np.ndarray, order: np.ndarray) -> None:
    """Raise UserError unless the turns of each session count up by one.

    `codes` [R] are the sessions as numbers; `order` [R] sorts the rows by session.
    """
    turns, codes = rows.turns[order], codes[order]
    wrong = (np.diff(turns) != 1) & (np.diff(codes) == 0)
    if wrong.any():
        (i,) = first_true(wrong)
        of_session, expected = turns[codes == codes[i]], turns[i] + 1
        if np.count_nonzero(of_session == turns[i + 1]) > 1:
            fault = "appears more than once"
        elif expected in of_session:
            fault = "out of order"
        else:
            fault = "turns are missing before it"
        place = rows.place(order[i + 1])
        raise UserError(f"{rows.where}: {rows.fields[1]} of {place}: {fault}, expected {expected} after {turns[i]}")


def _check_counts(rows: Rows, names: np.ndarray, counts: np.ndarray, lengths: list[int]) -> None:
    """Raise UserError unless all sessions have the same number of rows, one of `lengths`."""
    wrong = ~np.isin(counts, lengths)
    if wrong.any():
        (i,) = first_true(wrong)
        found = f"found {counts[i]} turns, expected {' or '.join(map(str, lengths))}"
        raise UserError(f"{rows.where}: {rows.fields[1]} of session {names[i]}: {found}")
    if (counts != counts[0]).any():
        (i,) = first_true(counts != counts[0])
        found = f"found {counts[i]} turns, but session {names[0]} has {counts[0]}; expected the same number in all"
        raise UserError(f"{rows.where}: {rows.fields[1]} of session {names[i]}: {found}")


def place_of(sessions: np.ndarray, turns: np.ndarray, row: int, numbered: bool = True) -> str:
    """Describe a row for a message."""
    place = f"session {sessions[row]}, turn {turns[row]}"
    return f"{place} (row {row})" if numbered else place


def first_true(mask: np.ndarray) -> tuple[int, ...]:
    """Return the index of the first True."""
    return tuple(int(i) for i in np.unravel_index(mask.argmax(), mask.shape))
