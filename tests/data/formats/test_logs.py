"""Logs as people have them: each shape gives the same sessions, and each fault ends in a sentence with its place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pl = pytest.importorskip("polars")

from slaterl.data.formats.logs import Log, read_log  # noqa: E402
from slaterl.errors import UserError  # noqa: E402
from tests.conftest import beside  # noqa: E402

SETTINGS: dict[str, Any] = dict.fromkeys(
    ["separator", "session_gap", "max_turns", "num_items", "slate_size", "episode_length"]
) | {"columns": {}, "ragged": "refuse"}
# session, turn, items, clicks; turns count on in each session
SLATES = [
    ("a", 0, [10, 20, 30], [0, 1, 0]),
    ("a", 1, [30, 10, 40], [0, 0, 0]),
    ("b", 0, [20, 40, 50], [1, 1, 0]),
    ("b", 1, [50, 30, 10], [0, 0, 1]),
    ("c", 0, [40, 20, 10], [0, 0, 0]),
    ("c", 1, [10, 50, 20], [1, 0, 0]),
]
ITEMS = [10, 20, 30, 40, 50]


def read(path: Path, **settings: Any) -> Log:
    return read_log(str(path), SETTINGS | settings)


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        read(path, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def text(folder: Path, *lines: str, name: str = "log.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def long_rows(slates: Any = SLATES) -> list[str]:
    return [
        f"{session},{turn},{item},{slot},{click}"
        for session, turn, items, clicks in slates
        for slot, (item, click) in enumerate(zip(items, clicks, strict=True))
    ]


def long(folder: Path, rows: list[str] | None = None, header: str = "user_id,turn,item_id,position,click") -> Path:
    return text(folder, header, *(long_rows() if rows is None else rows))


def lists(folder: Path, changes: Callable[[str], str] = str, header: str = "session_id,turn,slate,clicks") -> Path:
    rows = [f'{session},{turn},"{items}","{clicks}"' for session, turn, items, clicks in SLATES]
    return text(folder, header, *map(changes, rows))


def expected(slates: Any = SLATES) -> list[list[list[int]]]:
    return [[ITEMS.index(item) for item in items] for _, _, items, _ in slates]


def same(log: Log) -> None:
    """The log holds the sessions of SLATES."""
    assert log.data.slates[:, 1:].flatten(0, 1).tolist() == expected()
    assert log.data.clicks[:, 1:].flatten(0, 1).tolist() == [clicks for *_, clicks in SLATES]
    assert log.data.slates[:, 0].tolist() == [[0, 1, 2]] * 3 and not log.data.clicks[:, 0].any()
    assert log.data.lengths is None and log.data.truncated is None
    assert list(log.items.shown) == [5, 4, 3, 3, 3] and list(log.items.clicked) == [2, 2, 0, 1, 0]
    assert log.data.slates.dtype == log.data.clicks.dtype == torch.uint8
    json.dumps(log.about)


def wide(folder: Path) -> Path:
    rows = [",".join(map(str, [session, turn, *items, *clicks])) for session, turn, items, clicks in SLATES]
    return text(folder, "session,turn,item_1,item_2,item_3,click_1,click_2,click_3", *rows)


def parquet(folder: Path, **columns: Any) -> Path:
    own = {
        "session": [session for session, *_ in SLATES],
        "turn": [turn for _, turn, *_ in SLATES],
        "slate": [items for *_, items, _ in SLATES],
        "clicks": [clicks for *_, clicks in SLATES],
    }
    pl.DataFrame(own | columns, strict=False).write_parquet(folder / "log.parquet")
    return folder / "log.parquet"


def folder_of_parts(folder: Path) -> Path:
    frame = pl.read_parquet(parquet(folder))
    (folder / "log.parquet").unlink()
    (folder / "parts" / "day=1").mkdir(parents=True)
    frame[3:].write_parquet(folder / "parts" / "day=1" / "a.parquet")
    frame[:3].write_parquet(folder / "parts" / "b.parquet")
    return folder / "parts"


def compressed(folder: Path) -> Path:
    (folder / "log.csv.gz").write_bytes(gzip.compress(long(folder).read_bytes()))
    return folder / "log.csv.gz"


def shuffled(folder: Path) -> Path:
    rows = long_rows()
    return long(folder, [rows[i] for i in np.random.default_rng(0).permutation(len(rows))])


SHAPES: dict[str, Callable[[Path], Path]] = {
    "long": long,
    "shuffled": shuffled,
    "long without a position": lambda f: text(
        f, "user,turn,item,click", *(",".join(np.array(row.split(","))[[0, 1, 2, 4]]) for row in long_rows())
    ),
    "positions from 1": lambda f: long(
        f, [",".join([*(p := row.split(","))[:3], str(int(p[3]) + 1), p[4]]) for row in long_rows()]
    ),
    "lists": lists,
    "shuffled lists": lambda f: text(f, *((r := lists(f).read_text().splitlines())[:1] + r[4:] + r[1:4])),
    "other brackets": lambda f: lists(f, lambda row: row.replace(", ", " ").replace("[", "(").replace("]", ")")),
    "semicolons": lambda f: lists(f, lambda row: row.replace(", ", ";").replace("[", "").replace("]", "")),
    "quoted ids": lambda f: lists(f, lambda row: row.replace("0, ", "0', '").replace("['", "[").replace("'", "")),
    "clicks of true and false": lambda f: long(f, [row[:-1] + ("False", "true")[int(row[-1])] for row in long_rows()]),
    "clicks of 0.0 and 1.0": lambda f: long(f, [row + ".0" for row in long_rows()]),
    "wide": wide,
    "tabs": lambda f: text(
        f, "user\tstep\titem\tpos\tclicked", *(row.replace(",", "\t") for row in long_rows()), name="log.tsv"
    ),
    "byte order mark and windows lines": lambda f: _windows(long(f)),
    "parquet": parquet,
    "parquet of fixed lists and bools": lambda f: parquet(
        f,
        slate=pl.Series([items for *_, items, _ in SLATES], dtype=pl.Array(pl.UInt16, 3)),
        clicks=[[click > 0 for click in clicks] for *_, clicks in SLATES],
        session=pl.Series(list("aabbcc"), dtype=pl.Categorical),
    ),
    "folder": folder_of_parts,
    "gz": compressed,
    "iso times": lambda f: lists(f, lambda row: row.replace(",0,", ",2024-05-17T08:30:00Z,", 1).replace(
        ",1,", ",2024-05-17T08:30:00.250+00:00,", 1
    )),
    "offsets": lambda f: lists(f, lambda row: row.replace(",0,", ",2024-05-17 09:30:00+02:00,", 1).replace(
        ",1,", ",2024-05-17 07:31:00+0000,", 1
    )),
    "epoch milliseconds": lambda f: lists(f, lambda row: row.replace(",0,", ",1700000000123,", 1).replace(
        ",1,", ",1700000060123,", 1
    )),
    "times of parquet": lambda f: parquet(f, turn=pl.Series([0, 60] * 3).cast(pl.Datetime("us"))),
}  # fmt: skip


def _windows(path: Path) -> Path:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_sessions(tmp_path: Path, shape: str) -> None:
    same(read(SHAPES[shape](tmp_path)))


def test_items_of_text_come_back(tmp_path: Path) -> None:
    log = read(lists(tmp_path, lambda row: row.replace("10", '""b 1""').replace("20", '""B 1""').replace("30", "007")))
    assert log.items.ids == ["007", "40", "50", "B 1", "b 1"]
    assert log.data.slates[0, 1].tolist() == [4, 3, 0]
    assert any("differ from others in case or blanks only, such as 'B 1' and 'b 1'" in one for one in log.warnings)


def test_numbers_are_ordered_by_value_and_leading_zeros_are_text(tmp_path: Path) -> None:
    assert read(long(tmp_path, [row.replace(",50,", ",9,") for row in long_rows()])).items.ids == [9, 10, 20, 30, 40]
    assert read(long(tmp_path, [row.replace(",50,", ",09,") for row in long_rows()])).items.ids[0] == "09"


def test_whole_numbers_with_a_point_are_the_same_items(tmp_path: Path) -> None:
    """A column of pandas that has gaps holds 5.0 where others hold 5."""
    rows = [row.replace(",50,", ",10.0,").replace(",20,", ",20.0,") for row in long_rows()]
    assert read(long(tmp_path, rows)).items.ids == [10, 20, 30, 40]


def test_slates_that_are_all_empty(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text('session_id,turn,slate,clicks\n1,0,"[]","[]"\n1,1,"[]","[]"\n')
    assert refused(file) == f"{file}: no slate has an item"


def test_columns_of_any_name(tmp_path: Path) -> None:
    names = {"session": "用户", "turn": "轮次", "item": "商品", "position": "位置", "click": "点击"}
    path = long(tmp_path, header=",".join(names.values()))
    same(read(path, columns=names))
    assert (
        refused(path) == f"{path}: no column for a session or a user; found {', '.join(names.values())}; name it "
        "with dataset.columns.session=<column>"
    )
    wrong = refused(path, columns=names | {"turn": "時"})
    assert wrong.startswith(f"dataset.columns.turn=時: no such column in {path}; found 用户, ")


def test_slots_by_a_list_and_by_their_beginning(tmp_path: Path) -> None:
    path = wide(tmp_path)
    content = path.read_text().replace("item_", "product ").replace("click_", "bought")
    path.write_text(content)
    same(read(path, columns={"item": "product", "click": "bought"}))
    slots = [f"product {slot}" for slot in (3, 2, 1)], [f"bought{slot}" for slot in (3, 2, 1)]
    log = read(path, columns=dict(zip(("item", "click"), slots, strict=True)))
    assert log.data.slates[0, 1].tolist() == [2, 1, 0]


def test_several_columns_are_one_session(tmp_path: Path) -> None:
    path = text(tmp_path, "user,day,turn,slate,clicks", "a,1,0,7 8,0 1", "a,2,0,8 7,0 0", "b,1,0,7 8,1 1")
    assert len(read(path, columns={"session": ["user", "day"]}).data) == 3
    assert refused(path).startswith(f"{path}: turn of session a, turn 0 (row 0) appears again in row 1")


def test_clicked_ids(tmp_path: Path) -> None:
    rows = [
        f'{s},{t},"{items}","{[i for i, c in zip(items, clicks, strict=True) if c]}"' for s, t, items, clicks in SLATES
    ]
    path = text(tmp_path, "session_id,turn,slate,clicks", *rows)
    say = "say so with dataset.columns.clicked=clicks"
    assert refused(path) == f"{path}: clicks looks like the ids of the clicked items; {say}"
    same(read(path, columns={"clicked": "clicks"}))
    path.write_text(path.read_text().replace("[20]", "[50]"))
    told = refused(path, columns={"clicked": "clicks"})
    assert told == f"{path}: clicks of session a, turn 0 (row 0): found '50', expected an item of the slate"


def test_propensities(tmp_path: Path) -> None:
    rows = [f"{row},0.{i + 1}" for i, row in enumerate(long_rows())]
    path = long(tmp_path, rows, header="user,turn,item,position,click,propensity_score")
    found = read(path).data.propensity
    assert found is not None and found.shape == (3, 2, 3)
    assert found.flatten().tolist() == pytest.approx([float(f"0.{i + 1}") for i in range(18)])
    path = long(tmp_path, [*rows[:-1], rows[-1][: -len("0.18")] + "0"], header=path.read_text().split("\n")[0])
    assert "propensity_score of session c, turn 1 (row 17): found '0', expected a probability" in refused(path)


def test_sessions_of_different_lengths_in_any_order(tmp_path: Path) -> None:
    log = read(long(tmp_path, long_rows(SLATES[3:] + SLATES[:2])[::-1]))
    assert log.data.lengths is not None and log.data.lengths.tolist() == [2, 1, 2]
    assert log.data.slates[1, 1].tolist() == [4, 2, 0] and log.data.truncated is None
    assert not log.data.slates[1, 2:].any() and not log.data.clicks[1, 2:].any()
    assert log.data.returns.tolist() == [1, 1, 1]


def test_long_sessions_are_cut_and_say_so(tmp_path: Path) -> None:
    rows = [("a", turn, [10, 20], [turn % 2, 0]) for turn in range(5)] + [("b", 0, [20, 10], [0, 0])]
    log = read(long(tmp_path, long_rows(rows)), max_turns=2)
    assert log.data.lengths is not None and log.data.lengths.tolist() == [2, 2, 1, 1]
    assert log.data.truncated is not None and log.data.truncated.tolist() == [True, True, False, False]


def test_a_pause_begins_a_session(tmp_path: Path) -> None:
    def at(minutes: int) -> str:
        return f"2024-05-17 {8 + minutes // 60:02d}:{minutes % 60:02d}:00"

    rows = [f"u,{at(minutes)},1 2,0 1" for minutes in (0, 30, 61, 62)]
    path = text(tmp_path, "user,turn,timestamp,slate,clicks", *(r.replace("u,", f"u,{i},") for i, r in enumerate(rows)))
    lengths = {gap: read(path, session_gap=gap).data.lengths for gap in ("30m", "29m", "1h")}
    assert lengths["1h"] is None and lengths["30m"] is None  # one session, two of two
    assert lengths["29m"] is not None and lengths["29m"].tolist() == [1, 1, 2]
    assert len(read(path, session_gap="30m").data) == 2
    named = refused(path, session_gap="30m", columns={"turn": "turn"})
    assert named.startswith(f"dataset.session_gap=30m: turn of {path} holds no times; name them")


def test_slates_of_another_size(tmp_path: Path) -> None:
    rows = long_rows()
    path = long(tmp_path, [*rows[:5], *rows[6:]])  # the last item of a, turn 1
    told = refused(path)
    assert f"{path}: slates of different sizes: 1 of 2, 5 of 3; the first that is not one of 3 whole items is" in told
    assert "that of session a, turn 1 (row 3); dataset.ragged=drop leaves 1 slates out" in told
    log = read(path, ragged="drop")
    assert log.about["dropped_slates"] == 1 and "1 of 6 slates of another size were left out." in log.warnings
    assert log.data.lengths is not None and log.data.lengths.tolist() == [1, 2, 2]
    path = long(tmp_path, [*rows[:4], rows[4].replace(",1,0", ",3,0"), *rows[5:]])  # positions 0, 2, 3
    assert "1 of 3 lack a position" in refused(path)
    assert "no slate of 7 items is left" in refused(path, ragged="drop", slate_size=7)


def test_items_that_only_dropped_slates_show_are_not_counted(tmp_path: Path) -> None:
    log = read(long(tmp_path, [*long_rows(), "c,2,25,0,1"]), ragged="drop")
    assert log.items.ids == ITEMS
    same(log)


@pytest.mark.parametrize(("name", "found"), [("num_items", 5), ("slate_size", 3), ("episode_length", 2)])
def test_given_sizes_are_checked(tmp_path: Path, name: str, found: int) -> None:
    path = long(tmp_path)
    same(read(path, **{name: found}))
    told = refused(path, **{name: found + 1})
    assert f"dataset.{name}={found + 1}: {path} has {found}" == told or "slates of different sizes" in told


WRONG = [
    ("b,0,20,0,1", "b,0,20,0,2", "click of session b, turn 0 (row 6): found '2', expected 0 or 1"),
    ("b,0,20,0,1", "b,0,20,0,", "click of session b, turn 0 (row 6): found nothing, expected 0 or 1"),
    ("b,0,20,0,1", "b,0,,0,1", "item_id of session b, turn 0 (row 6): found nothing, expected an item id"),
    ("b,0,20,0,1", ",0,20,0,1", "user_id of row 6: empty"),
    ("b,0,20,0,1", "b,two,20,0,1", "turn of session b (row 6): found 'two', expected a whole number, or a time"),
    ("b,0,20,0,1", "b,,20,0,1", "turn of session b (row 6): found None, expected a whole number, or a time"),
    ("b,0,20,0,1", "b,0,20,top,1", "position of session b, turn 0 (row 6): found 'top', expected a number"),
    ("b,0,20,0,1", "b,0,20,1,1", "position 1 of session b, turn 0 (row 6) appears again in row 7; expected one row"),
    ("b,0,20,0,1", "b,0,20,0,1,9", "a row has more values than the header; lists with commas need quotes"),
]


@pytest.mark.parametrize(("row", "instead", "said"), WRONG)
def test_a_wrong_row(tmp_path: Path, row: str, instead: str, said: str) -> None:
    rows = long_rows()
    path = long(tmp_path, [instead if one == row else one for one in rows])
    assert refused(path).startswith(f"{path}: {said}")


WRONG_LISTS = [
    ('"[20, 40, 50]"', '"[20, , 50]"', "clicks of session b, turn 0 (row 2): found 3 values, expected 2, as the slate"),
    ('"[1, 1, 0]"', '"[1, 1, yes]"', "clicks of session b, turn 0 (row 2): found 'yes', expected 0 or 1"),
    ('"[1, 1, 0]"', '"[1, 1, 7]"', "clicks of session b, turn 0 (row 2): found '7', expected 0 or 1"),
    ('"[1, 1, 0]"', '"[1, 1]"', "clicks of session b, turn 0 (row 2): found 2 values, expected 3, as the slate"),
    ("b,1,", "b,0,", "turn of session b, turn 0 (row 2) appears again in row 3"),
    ("b,0,", "b,noon,", "turn of session b (row 2): found 'noon', expected a whole number, or a time"),
]


@pytest.mark.parametrize(("part", "instead", "said"), WRONG_LISTS)
def test_a_wrong_list(tmp_path: Path, part: str, instead: str, said: str) -> None:
    path = lists(tmp_path, lambda row: row.replace(part, instead) if row.startswith("b") else row)
    assert refused(path).startswith(f"{path}: {said}")


def test_a_time_that_is_none(tmp_path: Path) -> None:
    path = lists(tmp_path, lambda row: row.replace(",0,", ",2024-05-17 08:30:00,", 1).replace(
        ",1,", ",2024-02-30 08:30:00," if row.startswith("b") else ",2024-05-17 08:31:00,", 1
    ))  # fmt: skip
    assert "turn of session b (row 3): found '2024-02-30 08:30:00', expected a time such as 2024-05-17" in refused(path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            "user_id,turn,item_id,position,bought",
            "no column for clicks; found user_id, turn, item_id, position, bought",
        ),
        ("user_id,turn,thing,position,click", "no column for items; found user_id, turn, thing, position, click"),
        ("user_id,when,item_id,position,click", "no column for the turn or the time of a row; found user_id, when"),
        ("who,turn,item_id,position,click", "no column for a session or a user; found who, turn"),
    ],
)
def test_a_missing_column(tmp_path: Path, header: str, said: str) -> None:
    path = long(tmp_path, header=header)
    assert refused(path).startswith(f"{path}: {said}")


def test_files_that_are_none(tmp_path: Path) -> None:
    assert refused(tmp_path / "log.csv").endswith("log.csv: no such file")
    assert "a folder without .parquet files" in refused(tmp_path)
    assert "unknown format" in refused(text(tmp_path, "a", name="log.xlsx"))
    assert "it has no header" in refused(text(tmp_path, ""))
    assert "holds no rows" in refused(long(tmp_path, []))
    path = compressed(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    assert refused(path).startswith(f"{path}: cannot be read (")
    path = parquet(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    assert refused(path).startswith(f"{path}: cannot be read (")
    (tmp_path / "log.csv").write_bytes("user,turn,item,click\n\u00e9,0,1,0\n".encode("latin-1"))
    assert "cannot be read (" in refused(tmp_path / "log.csv")


def test_one_session_one_item_no_click(tmp_path: Path) -> None:
    log = read(long(tmp_path, ["a,0,7,0,0", "a,1,7,0,0"]))
    assert log.data.slates.shape == (1, 3, 1) and log.items.ids == [7]
    assert [warning.split(":")[0] for warning in log.warnings] == [
        "The log has one session", "The log has one item", "The log has no clicks.",
    ]  # fmt: skip
    assert "slates of 2 items, but only 1 different items" in refused(long(tmp_path, ["a,0,7,0,0", "a,0,7,1,0"]))


def test_padding_that_no_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slaterl.data.formats.logs.LARGEST", 10)
    assert "dataset.max_turns=<n> or dataset.session_gap=30m cuts long ones" in refused(long(tmp_path))


AS_THE_README_SAYS = {"clicked_ids.csv": "dataset.columns.clicked=clicks", "var_slate.csv": "48 of 2, 48 of 3"}


@pytest.mark.parametrize("name", sorted(path.name for path in beside("logs").glob("*.*") if path.suffix != ".md"))
def test_the_logs_of_the_project(name: str) -> None:
    path = beside("logs") / name
    if name in AS_THE_README_SAYS:
        assert AS_THE_README_SAYS[name] in refused(path)
        more = {"columns": {"clicked": "clicks"}} if name == "clicked_ids.csv" else {"ragged": "drop"}
        log = read(path, **more)
    else:
        log = read(path)
    assert len(log.data) == 24 and len(log.items) == 20
    plain = read(beside("logs") / "ok.csv")
    if name not in ("var_len.csv", "var_slate.csv", "string_items.parquet"):
        assert torch.equal(log.data.slates, plain.data.slates) and torch.equal(log.data.clicks, plain.data.clicks)
    assert (log.data.lengths is not None) == (name == "var_len.csv")


@pytest.mark.parametrize("position", ["-3", "0.5", "17"])
def test_one_stray_position_concerns_one_slate(tmp_path: Path, position: str) -> None:
    """A number before or between the usual ones moved every later slot of all slates."""
    rows = long_rows()
    rows[10] = ",".join([*rows[10].split(",")[:3], position, "1"])
    said = refused(long(tmp_path, rows))
    assert "6 of 3; 1 of 3 lack a position, or have one that hardly any slate has: first in row" in said
    assert "first in row 10; the first" in said and "that of session b, turn 1 (row 10)" in said
    assert "dataset.ragged=drop leaves 1 slates out" in said
    found = read(long(tmp_path, rows), ragged="drop")
    assert found.data.turns == 5 and found.about["dropped_slates"] == 1


def test_a_rare_long_slate_has_no_stray_positions(tmp_path: Path) -> None:
    rows = [row for turn in range(200) for row in long_rows([("a", turn, [10, 20], [0, 1])])]
    path = long(tmp_path, [*rows, *long_rows([("b", 0, [10, 20, 30], [0, 0, 0])])])
    found = read(path, ragged="drop", slate_size=3)
    assert found.data.slates.shape == (1, 2, 3) and found.about["dropped_slates"] == 200


def test_positions_that_some_slates_lack_are_no_stray_ones(tmp_path: Path) -> None:
    """Where many rows are missing, slot 1 is still slot 1."""
    whole = long_rows([("a", turn, [10, 20, 30], [0, 1, 0]) for turn in range(10)])
    gaps = [f"b,{turn},{item},{slot},0" for turn in range(30) for item, slot in ((10, 0), (20, 2), (30, 3))]
    found = read(long(tmp_path, [*whole, *gaps]), ragged="drop")
    assert found.data.turns == 10 and found.about["dropped_slates"] == 30


def with_chances(folder: Path, slots: int) -> Path:
    header, *rows = wide(folder).read_text().splitlines()
    names = "".join(f",chance_{slot + 1}" for slot in range(slots))
    return text(folder, header + names, *(row + "".join(f",0.{slot + 1}" for slot in range(slots)) for row in rows))


def test_propensities_of_slots(tmp_path: Path) -> None:
    log = read(with_chances(tmp_path, 3), columns={"propensity": "chance"})
    same(log)
    assert log.data.propensity is not None
    assert log.data.propensity[2, 1].tolist() == pytest.approx([0.1, 0.2, 0.3])
    for slots in (2, 4):
        told = refused(with_chances(tmp_path, slots), columns={"propensity": "chance"})
        counts = f"found 3 columns of items (item_1, ...), {slots} of propensities"
        assert told.endswith(f"{counts}; expected a column of propensities for each slot")


@pytest.mark.parametrize("role", ["session", "turn", "item", "click", "position", "propensity", "slate", "clicks"])
@pytest.mark.parametrize("shape", [long, wide, lists])
def test_a_misspelt_column_is_refused_in_every_shape(tmp_path: Path, shape: Any, role: str) -> None:
    path = shape(tmp_path)
    assert refused(path, columns={role: "chanse"}).startswith(
        f"dataset.columns.{role}=chanse: no such column in {path}"
    )


def test_a_column_without_use_is_refused(tmp_path: Path) -> None:
    path = wide(tmp_path)
    told = refused(path, columns={"propensity": "item_1"})
    no_use = "is read as a row a slate, a column a slot, which has no use for it"
    assert told == f"dataset.columns.propensity=item_1: {path} {no_use}"
    assert "dataset.columns.position=item_1: " in refused(path, columns={"position": "item_1"})


def test_a_gap_among_numbers_is_no_item(tmp_path: Path) -> None:
    """A column with gaps is one of floats for pandas, and a gap is NaN."""
    nan = float("nan")
    rows = {"session": ["a", "a", "b"], "turn": [0, 1, 0], "position": [0, 0, 0], "click": [1, 0, 0]}
    pl.DataFrame(rows | {"item": [1.0, nan, 2.0]}).write_parquet(path := tmp_path / "log.parquet")
    assert refused(path) == f"{path}: item of session a, turn 1 (row 1): found nothing, expected an item id"
    told = refused(parquet(tmp_path, slate=[[1.0, 2.0, 3.0]] * 5 + [[1.0, nan, 2.0]]))
    assert "slate of session c, turn 1 (row 5): found nothing" in told
    told = refused(long(tmp_path, [long_rows()[0], *(row.replace(",20,", ",nan,") for row in long_rows()[1:])]))
    assert "item_id of session a, turn 0 (row 1): found 'nan', expected an item id" in told
    pl.DataFrame({"session": ["a", "b"], "turn": [0, 0], "item_0": [1.0, 2.0], "item_1": [nan, 1.0], "click_0": [0, 1],
                  "click_1": [None, 1]}).write_parquet(path)  # fmt: skip
    assert "1 of 1, 1 of 2" in refused(path)  # as of a column of whole numbers with a gap
    names = [row.replace(",20,", ",NaN,").replace(",30,", ",Nan & Co,") for row in long_rows()]
    assert "NaN" in read(long(tmp_path, names)).items.ids  # among names it is one
    pl.DataFrame({"user": [1.0, nan], "day": [1, 1], "turn": [0, 0], "slate": [[1], [2]], "clicks": [[0], [1]]}
                 ).write_parquet(path)  # fmt: skip
    assert "user, day of row 1: empty" in refused(path, columns={"session": ["user", "day"]})


@pytest.mark.parametrize("form", ["%Y%m%d%H%M", "%Y%m%d%H%M%S", "%Y%m%d%H%M%S000"])
def test_numbers_that_are_dates(tmp_path: Path, form: str) -> None:
    """In 20240517085900 and 20240517090100 the numbers differ by 4,200, the times by two minutes."""
    times = [datetime(2024, 5, 17, 8, 30) + timedelta(minutes=m) for m in (0, 29, 31, 62)]
    path = text(tmp_path, "user,timestamp,slate,clicks", *(f"u,{time.strftime(form)},1 2,0 1" for time in times))
    assert len(read(path, session_gap="30m").data) == 2
    assert len(read(path, session_gap="32m").data) == 1 and len(read(path, session_gap="1m").data) == 4
    pl.read_csv(path).write_parquet(tmp_path / "log.parquet")
    assert len(read(tmp_path / "log.parquet", session_gap="30m").data) == 2


def test_a_number_that_is_no_date_among_many(tmp_path: Path) -> None:
    rows = [f"u,202405170830{second:02d},1 2,0 1" for second in range(60)] * 2
    path = text(tmp_path, "user,timestamp,slate,clicks", *rows, "u,20249917083000,1 2,0 1")
    told = refused(path, session_gap="30m")
    assert told.endswith("(row 120): found '20249917083000', expected a time such as 20240517083000")


@pytest.mark.parametrize(
    ("pairs", "ids"),
    [
        ([("a", "1"), ("b", "1")], ["a 1", "b 1"]),
        ([("a b", "c"), ("a", "b c"), ("ab", "c"), ("a", "bc")], ["a b/c", "a/b c", "a/bc", "ab/c"]),
        ([("a /|", "b"), ("a", "/| b"), ("a\\", "b|"), ("a", "\\ b")],
         ["a /|".replace(" ", "\\ ") + " b", "a /|\\ b", "a \\\\\\ b", "a\\\\ b|"]),
    ],
)  # fmt: skip
def test_joined_columns_tell_all_of_their_values_apart(
    tmp_path: Path, pairs: list[tuple[str, str]], ids: list[str]
) -> None:
    path = text(tmp_path, "user,day,turn,slate,clicks", *(f"{user},{day},0,7 8,0 1" for user, day in pairs))
    found = read(path, columns={"session": ["user", "day"]})
    assert sorted(found.sessions.ids) == sorted(ids) and len(found.data) == len(pairs)


def test_pieces_say_whose_they_are(tmp_path: Path) -> None:
    path = long(tmp_path, long_rows([(s, 2 * i, items, clicks) for i, (s, _, items, clicks) in enumerate(SLATES)]))
    assert read(path).data.group is None and read(path, max_turns=2).data.group is None  # nothing was cut
    cut = read(path, max_turns=1).data
    assert cut.group is not None and cut.group.tolist() == [0, 0, 1, 1, 2, 2] and cut.group.dtype == torch.int32
