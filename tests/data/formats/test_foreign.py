"""Trajectories of other formats: read as they are, and refused with the place of what is wrong with them."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slaterl.data.formats import foreign
from slaterl.data.formats.foreign import MADE, RECORDED, read
from slaterl.errors import UserError
from tests.helpers import ITEMS, SLOTS, TURNS, tiny_trajectories

FIRST = torch.tensor([7, 3, 20, 11])
SESSIONS = [40, 7, 12]  # in this order of appearance
TABLES = ["npz", "parquet", "csv"]
FORMATS = [*TABLES, "pt"]
LOG = {"sessions": "session_id", "turns": "turn", "slates": "slate", "clicks": "clicks"}
FIELDS = {kind: LOG for kind in FORMATS}
FIELDS["npz"] = {"sessions": "episode_ids", "turns": "timesteps", "slates": "slates", "clicks": "clicks"}

Log = dict[str, Any]


def log(frame_0: bool = False) -> Log:
    """Rows of three sessions: `sessions` and `turns` [R], `slates` and `clicks` [R, S], all int64."""
    data = tiny_trajectories(len(SESSIONS))
    first = 0 if frame_0 else 1
    rows = data.slates[:, first:].shape[1]
    return {
        "sessions": np.repeat(SESSIONS, rows),
        "turns": np.tile(np.arange(rows), len(SESSIONS)),
        "slates": data.slates[:, first:].reshape(-1, SLOTS).long().numpy(),
        "clicks": data.clicks[:, first:].reshape(-1, SLOTS).long().numpy(),
    }


def write(folder: Path, kind: str, rows: Log, leave_out: str = "") -> Path:
    """The rows as a file of that kind, without the field `leave_out`."""
    path = folder / f"log.{kind}"
    columns = {FIELDS[kind][name]: column for name, column in rows.items() if name != leave_out}
    if kind == "npz":
        np.savez(path, **columns)
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.table({name: pa.array(list(column)) for name, column in columns.items()}), path)
    elif kind == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for row in zip(*columns.values(), strict=True):
                writer.writerow([value.tolist() if np.ndim(value) else value for value in row])
    else:
        here = {name: rows["sessions"] == name for name in dict.fromkeys(rows["sessions"].tolist())}
        fields = {"slate": "slates", "clicks": "clicks"}
        torch.save(
            {
                session: {
                    field: torch.as_tensor(rows[name][mask]) for field, name in fields.items() if name != leave_out
                }
                for session, mask in here.items()
            },
            path,
        )
    return path


def load(path: Path | str, **sizes: Any) -> Any:
    expected = dict(num_items=ITEMS, slate_size=SLOTS, episode_length=TURNS, first_slate=FIRST)
    return read(str(path), **(expected | sizes))


def message(path: Path | str, **sizes: Any) -> str:
    """What `read` says; it must name the source."""
    with pytest.raises(UserError) as found:
        load(path, **sizes)
    assert str(path) in str(found.value)
    return str(found.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_row_t_becomes_frame_t_plus_1(tmp_path: Path, kind: str) -> None:
    data, metadata = load(write(tmp_path, kind, log()))
    expected = tiny_trajectories(len(SESSIONS))
    assert torch.equal(data.slates[:, 1:], expected.slates[:, 1:])
    assert torch.equal(data.clicks[:, 1:], expected.clicks[:, 1:])
    assert torch.equal(data.slates[:, 0], FIRST.to(torch.uint8).expand(3, -1)) and not data.clicks[:, 0].any()
    assert torch.equal(data.returns, expected.returns)
    assert data.slates.dtype == torch.uint8 and data.clicks.dtype == torch.uint8
    assert data.actions is None and data.policy_id is None and not data.hidden
    assert metadata == {"format": kind, "source": f"log.{kind}", "frame_0": MADE}
    json.dumps(metadata)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_any_type_of_whole_numbers(tmp_path: Path, kind: str, dtype: type) -> None:
    rows = {name: column.astype(dtype) for name, column in log().items()}
    data, _ = load(write(tmp_path, kind, rows))
    assert torch.equal(data.slates[:, 1:], tiny_trajectories(3).slates[:, 1:])


@pytest.mark.parametrize("kind", ["npz", "parquet", "pt"])
def test_clicks_may_be_bool(tmp_path: Path, kind: str) -> None:
    data, _ = load(write(tmp_path, kind, log() | {"clicks": log()["clicks"] > 0}))
    assert torch.equal(data.clicks[:, 1:], tiny_trajectories(3).clicks[:, 1:])


def test_more_items_than_a_byte_holds(tmp_path: Path) -> None:
    rows = log()
    rows["slates"][0, 0] = 40_000
    data, _ = load(write(tmp_path, "npz", rows), num_items=40_001)
    assert data.slates.dtype == torch.int32 and data.slates[0, 1, 0] == 40_000


@pytest.mark.parametrize("kind", TABLES)
def test_sessions_may_be_interleaved_and_begin_at_any_turn(tmp_path: Path, kind: str) -> None:
    rows = log()
    rows["turns"] += 5
    by_turn = np.argsort(rows["turns"], kind="stable")  # turn 5 of 40, of 7, of 12, then turn 6 of 40, ...
    data, _ = load(write(tmp_path, kind, {name: column[by_turn] for name, column in rows.items()}))
    assert torch.equal(data.slates[:, 1:], tiny_trajectories(3).slates[:, 1:])


@pytest.mark.parametrize("kind", ["npz", "parquet", "csv"])
def test_sessions_may_have_names(tmp_path: Path, kind: str) -> None:
    names = np.repeat(["7", "07", "007"], TURNS)
    data, _ = load(write(tmp_path, kind, log() | {"sessions": names}))
    assert torch.equal(data.slates[:, 1:], tiny_trajectories(3).slates[:, 1:])


# The published code's own files


def test_pt_with_the_frame_of_reset(tmp_path: Path) -> None:
    data, metadata = load(write(tmp_path, "pt", log(frame_0=True)))
    expected = tiny_trajectories(3)
    assert torch.equal(data.slates, expected.slates) and torch.equal(data.clicks, expected.clicks)
    assert metadata == {"format": "pt", "source": "log.pt", "frame_0": RECORDED}


def test_pt_with_and_without_the_frame_of_reset(tmp_path: Path) -> None:
    path = write(tmp_path, "pt", log(frame_0=True))
    sessions = torch.load(path)
    sessions[12] = {name: column[1:] for name, column in sessions[12].items()}
    torch.save(sessions, path)
    assert "session 12: found 6 turns, where session 40 has 7" in message(path)


@pytest.mark.parametrize("rows", [0, 1, TURNS - 1, TURNS + 2])
def test_pt_of_another_length(tmp_path: Path, rows: int) -> None:
    path = write(tmp_path, "pt", log())
    sessions = torch.load(path)
    sessions[7] = {name: column[:1].expand(rows, -1) for name, column in sessions[7].items()}
    torch.save(sessions, path)
    text = message(path)
    assert "session 7" in text and ("[0, 4]" if rows == 0 else f"found {rows} turns, expected 6 or 7") in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "list"),
        ({}, "no trajectories"),
        ({3: [1, 2]}, "session 3: found list"),
        ({3: {"slate": torch.zeros(TURNS, SLOTS)}}, "session 3: no clicks; found slate"),
        ({3: {"slate": [[1]], "clicks": [[1]]}}, "slate of session 3: found list, expected a tensor"),
        (
            {3: {"slate": torch.zeros(6), "clicks": torch.zeros(6)}},
            "slate of session 3: found [6], expected [turns, 4]",
        ),
        ({3: {"slate": torch.zeros(6, 5), "clicks": torch.zeros(6, 5)}}, "slate of session 3: found [6, 5]"),
        ({3: {"slate": torch.zeros(6, 4), "clicks": torch.zeros(5, 4)}}, "clicks of session 3: found [5, 4]"),
    ],
)
def test_pt_of_something_else(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "log.pt")
    assert words in message(tmp_path / "log.pt")


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def test_pt_runs_no_code(tmp_path: Path) -> None:
    torch.save({3: Code()}, tmp_path / "log.pt")
    assert "cannot be read" in message(tmp_path / "log.pt")


def test_npz_runs_no_code(tmp_path: Path) -> None:
    np.savez(tmp_path / "log.npz", **dict.fromkeys(FIELDS["npz"].values(), np.array([Code()], dtype=object)))
    assert "cannot be read" in message(tmp_path / "log.npz")


# What is wrong with the values


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
    (change("turns", 8, 1), "turn 1 (row 8): doubled, expected 2 after 1"),
    (change("turns", 8, 0), "turn 0 (row 8): doubled, expected 2 after 1"),
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


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_session_without_an_id(tmp_path: Path, kind: str) -> None:
    rows = log()
    change("sessions", 8, np.nan)(rows)
    assert f"{FIELDS[kind]['sessions']} of row 8: empty" in message(write(tmp_path, kind, rows))


# What is wrong with the files


@pytest.mark.parametrize("kind", FORMATS)
def test_missing_file(tmp_path: Path, kind: str) -> None:
    assert "no such file" in message(tmp_path / f"log.{kind}")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"log.{kind}").mkdir()
    assert "cannot be read" in message(tmp_path / f"log.{kind}")


@pytest.mark.parametrize("kind", ["npz", "csv", "pt"])
def test_empty(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, {name: column[:0] for name, column in log().items()})
    assert "holds no trajectories" in message(path)


def test_empty_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lists = pa.list_(pa.int64())
    schema = pa.schema([("session_id", pa.int64()), ("turn", pa.int64()), ("slate", lists), ("clicks", lists)])
    parquet.write_table(schema.empty_table(), tmp_path / "log.parquet")
    assert "holds no trajectories" in message(tmp_path / "log.parquet")


@pytest.mark.parametrize("kind", FORMATS)
def test_not_such_a_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"log.{kind}"
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    for content in (b"", b"\xff\xfe\x00 something else" * 50):
        path.write_bytes(content)
        assert "cannot be read" in message(path)


@pytest.mark.parametrize("kind", ["npz", "parquet", "pt"])
def test_truncated(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, log())
    content = path.read_bytes()
    for length in (1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "cannot be read" in message(path)


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in TABLES for field in LOG] + [("pt", "slates"), ("pt", "clicks")]
)
def test_missing_field(tmp_path: Path, kind: str, field: str) -> None:
    text = message(write(tmp_path, kind, log(), leave_out=field))
    assert f": no {FIELDS[kind][field]}; found " in text


@pytest.mark.parametrize("kind", FORMATS)
def test_slates_of_another_size(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, log())
    assert load(path)
    text = message(path, slate_size=5, first_slate=torch.arange(5))
    assert "slate" in text and "4" in text and "5" in text


@pytest.mark.parametrize("name", ["log.txt", "log", "log.safetensors"])
def test_unknown_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    assert ".npz, .pt, .parquet or .csv" in message(tmp_path / name)


def test_suffix_in_capitals(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", log())
    assert load(path.rename(tmp_path / "LOG.CSV"))[1]["format"] == "csv"


@pytest.mark.parametrize(
    ("field", "column", "words"),
    [
        ("clicks", np.zeros((18, 3)), "clicks: found [18, 3], expected [18, 4]"),
        ("clicks", np.zeros((17, 4)), "clicks: found [17, 4], expected [18, 4]"),
        ("slates", np.zeros((3, 6, 4)), "slates: found [3, 6, 4], expected"),
        ("slates", np.full((18, 4), "3"), "slates: found <U1, expected item ids"),
        ("slates", np.zeros((18, 4), dtype=bool), "slates: found bool, expected item ids"),
        ("sessions", np.zeros(17), "episode_ids: found [17], expected [18]"),
        ("turns", np.zeros((18, 1)), "timesteps: found [18, 1], expected [18]"),
    ],
)
def test_npz_of_other_shapes_and_types(tmp_path: Path, field: str, column: np.ndarray, words: str) -> None:
    assert words in message(write(tmp_path, "npz", log() | {field: column}))


def test_npz_of_one_array(tmp_path: Path) -> None:
    np.save(tmp_path / "log.npy", np.zeros(3))
    assert "one array" in message((tmp_path / "log.npy").rename(tmp_path / "log.npz"))


# Lists in tables


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("field", ["slates", "clicks"])
@pytest.mark.parametrize("length", [0, 3, 5])
def test_ragged_lists(tmp_path: Path, kind: str, field: str, length: int) -> None:
    rows = log()
    rows[field] = list(rows[field])
    rows[field][8] = np.zeros(length, dtype=np.int64)
    text = message(write(tmp_path, kind, rows))
    assert f"{FIELDS[kind][field]} of session 7, turn 2 (row 8): found {length} values, expected 4" in text


def test_parquet_of_other_list_types_and_chunks(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = log()
    table = pa.table(
        {
            "clicks": pa.FixedSizeListArray.from_arrays(pa.array(rows["clicks"].reshape(-1) > 0), SLOTS),
            "slate": pa.array(rows["slates"].tolist(), type=pa.large_list(pa.uint16())),
            "turn": pa.array(rows["turns"], type=pa.int8()),
            "session_id": pa.array([f"user {name}" for name in rows["sessions"]]).dictionary_encode(),
            "anything": pa.array(["else"] * len(rows["turns"])),
        }
    )
    parquet.write_table(table, tmp_path / "log.parquet", row_group_size=5)
    data, _ = load(tmp_path / "log.parquet")
    expected = tiny_trajectories(3)
    assert torch.equal(data.slates[:, 1:], expected.slates[:, 1:])
    assert torch.equal(data.clicks[:, 1:], expected.clicks[:, 1:])


def test_parquet_with_nothing_in_a_list(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def text(field: str, column: Any) -> str:
        rows = log()
        columns = {FIELDS["parquet"][name]: pa.array(list(values)) for name, values in rows.items()}
        parquet.write_table(pa.table(columns | {field: column}), tmp_path / "log.parquet")
        return message(tmp_path / "log.parquet")

    slates: list[Any] = log()["slates"].tolist()
    clicks: list[Any] = (log()["clicks"] > 0).tolist()
    slates[8], clicks[8][1] = None, None
    assert "slate of session 7, turn 2 (row 8): found 0 values" in text("slate", pa.array(slates))
    assert "clicks of session 7, turn 2 (row 8): found nan, expected 0 or 1" in text("clicks", pa.array(clicks))
    assert "slate: found the type" in text("slate", pa.array(["1 2 3 4"] * 18))
    assert "slate: found the type" in text("slate", pa.array([["1", "2", "3", "4"]] * 18))
    assert "turn: found object" in text("turn", pa.array(["1"] * 18))


def csv_of(folder: Path, changes: dict[str, str], slate: str = "3 14 15 9") -> Path:
    """One session of TURNS turns, all alike but for the changes in turn 2."""
    fields = {"session_id": "a", "slate": slate, "clicks": "0 1 0 1"}
    lines = [",".join(foreign.LOG_FIELDS)]
    for turn in range(TURNS):
        row = fields | {"turn": str(turn)} | (changes if turn == 2 else {})
        lines.append(",".join(row[name] for name in foreign.LOG_FIELDS))
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
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
    (tmp_path / "log.csv").write_text("\n".join(["session_id,turn,slate,clicks", *lines]))
    assert f"clicks of session 3333, turn 3 (row 20001): found {found}" in message(tmp_path / "log.csv")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.parquet").write_text("")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'slaterl[parquet]'" in message(tmp_path / "log.parquet")
