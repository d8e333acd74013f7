"""Rows to sessions: values, turns and lengths that are wrong are reported with their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.formats.logs import FIELDS, FORMATS, TABLES, Log, load, log, message, write
from tests.helpers import ITEMS, TURNS, tiny_trajectories


@pytest.mark.parametrize("kind", TABLES)
def test_sessions_may_be_interleaved_and_begin_at_any_turn(tmp_path: Path, kind: str) -> None:
    rows = log()
    rows["turns"] += 5
    by_turn = np.argsort(rows["turns"], kind="stable")  # turn 5 of 40, of 7, of 12, then turn 6 of 40, ...
    data, _ = load(write(tmp_path, kind, {name: column[by_turn] for name, column in rows.items()}))
    assert torch.equal(data.slates[:, 1:], tiny_trajectories(3).slates[:, 1:])


@pytest.mark.parametrize("kind", TABLES)
def test_sessions_may_have_names(tmp_path: Path, kind: str) -> None:
    names = np.repeat(["7", "07", "007"], TURNS)
    data, _ = load(write(tmp_path, kind, log() | {"sessions": names}))
    assert torch.equal(data.slates[:, 1:], tiny_trajectories(3).slates[:, 1:])


def change(field: str, row: int, value: float) -> Callable[[Log], None]:
    def damage(rows: Log) -> None:
        if not float(value).is_integer():
            rows[field] = rows[field].astype(np.float64)
        rows[field][(row, 2)[: rows[field].ndim]] = value  # slot 2 of a slate

    return damage


def without(row: int) -> Callable[[Log], None]:
    def damage(rows: Log) -> None:
        rows.update({name: np.delete(column, row, axis=0) for name, column in rows.items()})

    return damage


def swapped(a: int, b: int) -> Callable[[Log], None]:
    def damage(rows: Log) -> None:
        rows["turns"][[a, b]] = rows["turns"][[b, a]]

    return damage


WRONG_VALUES = [  # row 8 is turn 2 of session 7, the second one
    (change("slates", 8, ITEMS), "slates", "found 30", "expected item ids 0..29"),
    (change("slates", 8, -1), "slates", "found -1", "expected item ids 0..29"),
    (change("slates", 8, 2.5), "slates", "found 2.5", "expected item ids 0..29"),
    (change("slates", 8, np.nan), "slates", "found nan", "expected item ids 0..29"),
    (change("slates", 8, np.inf), "slates", "found inf", "expected item ids 0..29"),
    (change("clicks", 8, 2), "clicks", "found 2", "expected 0 or 1"),
    (change("clicks", 8, -1), "clicks", "found -1", "expected 0 or 1"),
    (change("clicks", 8, 0.5), "clicks", "found 0.5", "expected 0 or 1"),
    (change("clicks", 8, np.nan), "clicks", "found nan", "expected 0 or 1"),
]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("damage", "field", "found", "expected"), WRONG_VALUES)
def test_wrong_value(
    tmp_path: Path, kind: str, damage: Callable[[Log], None], field: str, found: str, expected: str
) -> None:
    rows = log()
    damage(rows)
    text = message(write(tmp_path, kind, rows))
    place = "session 7, turn 2" if kind == "pt" else "session 7, turn 2 (row 8)"
    assert f": {FIELDS[kind][field]} of {place}: {found}" in text and expected in text


WRONG_TURNS = [
    (without(8), "turn 3 (row 8): turns are missing before it, expected 2 after 1"),
    (change("turns", 8, 1), "turn 1 (row 8): appears more than once, expected 2 after 1"),
    (change("turns", 8, 0), "turn 0 (row 8): appears more than once, expected 2 after 1"),
    (change("turns", 8, 9), "turn 9 (row 8): turns are missing before it, expected 2 after 1"),
    (swapped(8, 9), "turn 3 (row 8): out of order, expected 2 after 1"),
    (swapped(6, 8), "turn 1 (row 7): out of order, expected 3 after 2"),
]


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(("damage", "words"), WRONG_TURNS)
def test_wrong_turns(tmp_path: Path, kind: str, damage: Callable[[Log], None], words: str) -> None:
    rows = log()
    damage(rows)
    assert f": {FIELDS[kind]['turns']} of session 7, {words}" in message(write(tmp_path, kind, rows))


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("value", [2.5, np.nan, np.inf])
def test_a_turn_that_is_no_number(tmp_path: Path, kind: str, value: float) -> None:
    rows = log()
    change("turns", 8, value)(rows)
    text = message(write(tmp_path, kind, rows))
    assert f": {FIELDS[kind]['turns']} of session 7" in text and "(row 8): found" in text
    assert "expected a whole number" in text


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("row", [6, 11])  # the first and the last of session 7
def test_a_session_that_is_too_short(tmp_path: Path, kind: str, row: int) -> None:
    rows = log()
    without(row)(rows)
    text = message(write(tmp_path, kind, rows))
    assert f"{FIELDS[kind]['turns']} of session 7: found 5 turns, expected 6" in text


@pytest.mark.parametrize("kind", TABLES)
def test_sessions_that_are_too_long(tmp_path: Path, kind: str) -> None:
    assert "session 40: found 6 turns, expected 5" in message(write(tmp_path, kind, log()), episode_length=5)


@pytest.mark.parametrize("kind", TABLES)
def test_the_frame_of_reset_is_only_expected_in_pt(tmp_path: Path, kind: str) -> None:
    assert "session 40: found 7 turns, expected 6" in message(write(tmp_path, kind, log(frame_0=True)))


@pytest.mark.parametrize("kind", TABLES)
def test_a_session_without_an_id(tmp_path: Path, kind: str) -> None:
    rows = log()
    change("sessions", 8, np.nan)(rows)
    assert f"{FIELDS[kind]['sessions']} of row 8: empty" in message(write(tmp_path, kind, rows))
