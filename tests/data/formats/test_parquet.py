"""Parquet logs: types of lists, empty places, a missing package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.formats.logs import FIELDS, load, log, message
from tests.helpers import SLOTS, tiny_trajectories


def test_empty_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lists = pa.list_(pa.int64())
    schema = pa.schema([("session_id", pa.int64()), ("turn", pa.int64()), ("slate", lists), ("clicks", lists)])
    parquet.write_table(schema.empty_table(), tmp_path / "log.parquet")
    assert "holds no trajectories" in message(tmp_path / "log.parquet")


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
    assert "slate: found values of type" in text("slate", pa.array(["1 2 3 4"] * 18))
    assert "slate: found values of type" in text("slate", pa.array([["1", "2", "3", "4"]] * 18))
    assert "turn: found values of type object" in text("turn", pa.array(["1"] * 18))


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.parquet").write_text("", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'slaterl[parquet]'" in message(tmp_path / "log.parquet")
