"""Files of every format: they are read as they are, or refused with a message that names the fault."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from slaterl.data.formats.read import FRAME_0_MADE
from tests.data.formats.logs import FIELDS, FIRST, FORMATS, LOG, SESSIONS, TABLES, load, log, message, write
from tests.helpers import tiny_trajectories


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
    assert metadata == {"format": kind, "source": f"log.{kind}", "frame_0": FRAME_0_MADE}
    json.dumps(metadata)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_any_type_of_whole_numbers(tmp_path: Path, kind: str, dtype: type) -> None:
    rows = {name: column.astype(dtype) for name, column in log().items()}
    data, _ = load(write(tmp_path, kind, rows))
    assert torch.equal(data.slates[:, 1:], tiny_trajectories(3).slates[:, 1:])


@pytest.mark.parametrize("kind", FORMATS)
def test_clicks_may_be_bool(tmp_path: Path, kind: str) -> None:
    data, _ = load(write(tmp_path, kind, log() | {"clicks": log()["clicks"] > 0}))
    assert torch.equal(data.clicks[:, 1:], tiny_trajectories(3).clicks[:, 1:])


def test_more_items_than_a_byte_holds(tmp_path: Path) -> None:
    rows = log()
    rows["slates"][0, 0] = 40_000
    data, _ = load(write(tmp_path, "npz", rows), num_items=40_001)
    assert data.slates.dtype == torch.int32 and data.slates[0, 1, 0] == 40_000


@pytest.mark.parametrize("kind", FORMATS)
def test_missing_file(tmp_path: Path, kind: str) -> None:
    assert "no such file" in message(tmp_path / f"log.{kind}")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"log.{kind}").mkdir()
    assert "cannot be read" in message(tmp_path / f"log.{kind}")


@pytest.mark.parametrize("kind", FORMATS)
def test_empty(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, {name: column[:0] for name, column in log().items()})
    assert "holds no trajectories" in message(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_not_such_a_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"log.{kind}"
    for content in (b"", b"\xff\xfe\x00 something else" * 50):
        path.write_bytes(content)
        assert "cannot be read" in message(path)


@pytest.mark.parametrize("kind", FORMATS)
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
    assert f": missing {FIELDS[kind][field]}; found " in text


@pytest.mark.parametrize("kind", FORMATS)
def test_slates_of_another_size(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, log())
    assert load(path)
    text = message(path, slate_size=5, first_slate=torch.arange(5))
    assert "slate" in text and "4" in text and "5" in text


@pytest.mark.parametrize("name", ["log.txt", "log", "log.safetensors", "log.csv", "log.parquet"])
def test_unknown_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("", encoding="utf-8")
    expected = "unknown format; expected minari:<dataset id>, or a file ending in .npz, .pt; dataset=log reads CSV"
    assert expected in message(tmp_path / name)


def test_suffix_in_capitals(tmp_path: Path) -> None:
    path = write(tmp_path, "npz", log())
    assert load(path.rename(tmp_path / "LOG.NPZ"))[1]["format"] == "npz"
