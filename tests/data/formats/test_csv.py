"""CSV logs: how lists are written, and faults of single rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from slaterl.data.formats.rows import LOG_FIELDS
from tests.data.formats.logs import load, message
from tests.helpers import TURNS


def csv_of(folder: Path, changes: dict[str, str], slate: str = "3 14 15 9") -> Path:
    """Write one session of TURNS equal turns, with changes in turn 2."""
    fields = {"session_id": "a", "slate": slate, "clicks": "0 1 0 1"}
    lines = [",".join(LOG_FIELDS)]
    for turn in range(TURNS):
        row = fields | {"turn": str(turn)} | (changes if turn == 2 else {})
        lines.append(",".join(row[name] for name in LOG_FIELDS))
    (folder / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "log.csv"


@pytest.mark.parametrize(
    "slate", ["3 14 15 9", '"[3, 14, 15, 9]"', "[ 3 14  15 9]", '"(3,14,15,9)"', "3;14;15;9", "3.0 14 15 9e0"]
)
def test_csv_lists(tmp_path: Path, slate: str) -> None:
    data, _ = load(csv_of(tmp_path, {}, slate))
    assert data.slates[0, 1:].tolist() == [[3, 14, 15, 9]] * TURNS
    assert data.clicks[0, 1:].tolist() == [[0, 1, 0, 1]] * TURNS


def test_csv_with_a_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    path = csv_of(tmp_path, {})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load(path)[0].slates[0, 1].tolist() == [3, 14, 15, 9]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slate": "3 14 x 9"}, "slate of session a, turn 2 (row 2): found '3 14 x 9', expected numbers"),
        ({"clicks": "0 1 0 yes"}, "clicks of session a, turn 2 (row 2): found '0 1 0 yes', expected numbers"),
        ({"slate": ""}, "slate of session a, turn 2 (row 2): found 0 values, expected 4"),
        ({"slate": "[3,,15,9]"}, "cannot be read"),
        ({"slate": '"[3,,15,9]"'}, "slate of session a, turn 2 (row 2): found 3 values, expected 4"),
        ({"turn": "two"}, "turn of session a (row 2): found 'two', expected a whole number"),
        ({"session_id": ""}, "session_id of row 2: empty"),
    ],
)
def test_csv_that_is_wrong_in_one_row(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    assert words in message(csv_of(tmp_path, changes))


def test_csv_of_lists_without_quotes(tmp_path: Path) -> None:
    assert "need quotes" in message(csv_of(tmp_path, {}, "[3,14,15,9]"))


@pytest.mark.parametrize(("last", "found"), [("?", "'0 0 0 ?', expected numbers"), ("", "3 values, expected 4")])
def test_what_is_wrong_far_down_a_long_csv(tmp_path: Path, last: str, found: str) -> None:
    rows = 20_004
    lines = [f"{row // TURNS},{row % TURNS},1 2 3 4,0 0 0 {last if row == 20_001 else 0}" for row in range(rows)]
    (tmp_path / "log.csv").write_text("\n".join(["session_id,turn,slate,clicks", *lines]), encoding="utf-8")
    assert f"clicks of session 3333, turn 3 (row 20001): found {found}" in message(tmp_path / "log.csv")
