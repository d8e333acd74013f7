"""metrics.csv: what a resumed run keeps, what a kill cuts off, and a disk that cannot be written."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from slaterl.errors import UserError
from slaterl.training.metrics import MetricsFile, curve, read

COLUMNS = ["step", "loss", "val/return"]


def write(path: Path, steps: list[int]) -> None:
    """A finished metrics.csv with loss = step / 10, and a return at every second step."""
    metrics = MetricsFile(path, COLUMNS, resume_step=0)
    for step in steps:
        metrics.append({"step": step, "loss": step / 10} | ({"val/return": 2.0 * step} if step % 2 == 0 else {}))
    metrics.close()


def test_rows_and_curves(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write(path, [1, 2, 3, 4])
    assert path.read_text().splitlines()[:3] == ["step,loss,val/return", "1,0.1,", "2,0.2,4"]
    assert curve(path, "loss") == ([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4])
    assert curve(path, "val/return") == ([2, 4], [4.0, 8.0])
    assert curve(path, "no such column") == ([], [])
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_row_can_be_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path, COLUMNS, resume_step=0)
    metrics.append({"step": 1, "loss": 0.5})
    assert read(path) == [{"step": "1", "loss": "0.5", "val/return": ""}]
    metrics.close()


def test_resumed_run_drops_what_was_lost(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write(path, [10, 20, 30, 40])
    metrics = MetricsFile(path, COLUMNS, resume_step=20)
    metrics.append({"step": 30, "loss": 9.0})
    metrics.close()
    assert curve(path, "loss") == ([10, 20, 30], [1.0, 2.0, 9.0])


def test_new_run_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write(path, [10, 20])
    MetricsFile(path, COLUMNS, resume_step=0).close()
    assert path.read_bytes() == b"step,loss,val/return\r\n" and read(path) == []


def last_line_cut(path: Path, start: int, stop: int) -> None:
    """A kill in a write, the last line being cut off after start..stop-1 characters: no row, nor glued to the next."""
    write(path, [10, 20, 30, 40])
    content = path.read_bytes()
    last = content.index(b"40,4,80")
    whole = read(path)[:3]
    for end in range(last + start, last + stop):
        path.write_bytes(content[:end])
        assert read(path) == whole, content[last:end]
        metrics = MetricsFile(path, COLUMNS, resume_step=100)
        metrics.append({"step": 50, "loss": 5.0})
        metrics.close()
        assert curve(path, "loss") == ([10, 20, 30, 50], [1.0, 2.0, 3.0, 5.0]), content[last:end]


def test_a_last_line_that_lacks_columns_is_no_row(tmp_path: Path) -> None:
    last_line_cut(tmp_path / "metrics.csv", 0, len("40,4,"))


def test_a_last_line_without_an_end_is_no_row(tmp_path: Path) -> None:
    last_line_cut(tmp_path / "metrics.csv", len("40,4,"), len("40,4,80\r"))


def test_unknown_column_is_refused(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv", COLUMNS, resume_step=0)
    with pytest.raises(ValueError, match="typo"):
        metrics.append({"step": 1, "typo": 1.0})
    metrics.close()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"metrics.csv: cannot be written"):
        MetricsFile(tmp_path / "occupied" / "metrics.csv", COLUMNS, resume_step=0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv", COLUMNS, resume_step=0)
    metrics.file.close()
    metrics.file = open("/dev/full", "a", newline="")  # noqa: SIM115 (closed by close)
    metrics.writer = csv.DictWriter(metrics.file, COLUMNS)
    with pytest.raises(UserError, match=r"metrics.csv: cannot be written .*No space left"):
        metrics.append({"step": 1, "loss": 0.5})
    metrics.close()  # the way out of a run: it must not hide the sentence above
