"""metrics.csv: the metrics of a run, with columns that stay the same while it is written."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from slaterl.errors import UserError
from slaterl.runs.files import first_line, whole_file


class MetricsFile:
    """Appends rows. A run that resumes from step n drops the rows after n.

    Args:
        columns: in order, `step` first.
        resume_step: rows with a larger step belong to work that an interruption lost.
    """

    def __init__(self, path: Path, columns: Sequence[str], resume_step: int) -> None:
        self.path, self.columns = path, list(columns)
        try:
            rows = [row for row in read(path) if int(row["step"]) <= resume_step] if path.exists() else []
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: not a metrics file of slaterl; remove it to continue") from error
        with whole_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        self.file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (stays open during the run)
        self.writer = csv.DictWriter(self.file, self.columns)

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row. Missing columns stay empty; an unknown column is a mistake of the caller."""
        shown = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
        try:
            self.writer.writerow(shown)
            self.file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({first_line(error)})") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # append has reported failed writes
            self.file.close()


def read(path: Path) -> list[dict[str, str]]:
    """Return all complete rows of a metrics.csv, without a last line that a kill cut off."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if line.endswith("\n")))


def curve(path: Path, column: str) -> tuple[list[int], list[float]]:
    """Return steps and values of one column, without its empty cells."""
    points = [(int(row["step"]), float(row[column])) for row in read(path) if row.get(column)]
    return [step for step, _ in points], [value for _, value in points]
