"""Tables of logs, as polars reads them: CSV, also compressed, a Parquet file, or a folder of Parquet files."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slaterl.data.formats.checks import reading, require_package
from slaterl.errors import UserError
from slaterl.runs.files import fingerprint_of, fingerprint_of_files

if TYPE_CHECKING:
    import polars as pl

PARQUET = (".parquet", ".pq")
TEXT = (".csv", ".tsv", ".tab", ".txt")
SEPARATORS = ",\t;|"


@dataclass(frozen=True)
class Table:
    """A table that is not loaded yet.

    Attributes:
        where: its name in messages.
        columns: names of its columns.
        load: loads some of them. The columns of a CSV file are text, because session 007 is not session 7.
    """

    where: str
    columns: Sequence[str]
    load: Callable[[Sequence[str]], pl.DataFrame]


def open_table(path: str, separator: str | None) -> Table:
    """Open a table by the ending of its name.

    Args:
        separator: of CSV; None finds the one that the header uses.

    Raises:
        UserError: the file is missing, damaged or empty, or has another ending; polars is not installed.
    """
    require_package("polars", "logs", path)
    files = files_of(path)
    if Path(path).expanduser().is_dir() or files[0].suffix.lower() in PARQUET:
        return _parquet(path, files)
    plain = files[0].name.lower().removesuffix(".gz")
    if not plain.endswith(TEXT):
        expected = f"{', '.join((*PARQUET, *TEXT))} (also with .gz), or a folder of .parquet files"
        raise UserError(f"{path}: unknown format; expected a name that ends in {expected}")
    return _csv(path, files[0], separator)


def files_of(path: str) -> list[Path]:
    """Return the file, or the Parquet files below a folder.

    Raises:
        UserError: there are none.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        found = sorted(file for file in place.rglob("*") if file.suffix.lower() in PARQUET and file.is_file())
        if not found:
            raise UserError(f"dataset.path={path}: a folder without .parquet files")
        return found
    if not place.is_file():
        raise UserError(f"dataset.path={path}: no such file")
    return [place]


def fingerprint(path: str) -> str:
    """Return 16 hex digits that change with any byte of the file, or of the files in the folder."""
    files = files_of(path)
    return _fingerprint(Path(path).expanduser(), tuple((file, *_state_of(file)) for file in files))


@lru_cache(maxsize=64)
def _fingerprint(place: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    if place.is_dir():
        return fingerprint_of_files(place, [file for file, *_ in files])
    return fingerprint_of(place)


def _state_of(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


def _parquet(path: str, files: Sequence[Path]) -> Table:
    import polars as pl

    with reading(Path(path)):
        frame = pl.scan_parquet(list(files), glob=False)
        names = frame.collect_schema().names()

    def load(columns: Sequence[str]) -> pl.DataFrame:
        with reading(Path(path)):
            return frame.select(columns).collect()

    return Table(path, names, load)


def _csv(path: str, file: Path, separator: str | None) -> Table:
    import polars as pl

    with reading(Path(path)):
        if file.suffix.lower() == ".gz":
            with gzip.open(file) as packed:
                source: Any = packed.read()
            first = source.split(b"\n", 1)[0]
        else:
            source = file
            with open(file, "rb") as raw:
                first = raw.readline()
        line = first.decode("utf-8-sig").strip()
        if not line:
            raise UserError(f"{path}: cannot be read (it has no header)")
        options: dict[str, Any] = {"separator": separator or _separator(line), "infer_schema": False, "glob": False}
        names = pl.read_csv(source, n_rows=0, **options).columns

    def load(columns: Sequence[str]) -> pl.DataFrame:
        with reading(Path(path)):
            try:
                return pl.read_csv(source, columns=list(columns), **options).select(columns)
            except pl.exceptions.ComputeError as error:
                if "more fields" not in str(error):
                    raise
                lists = "lists with commas need quotes around them"
                raise UserError(f"{path}: a row has more values than the header; {lists}") from error

    return Table(path, names, load)


def _separator(header: str) -> str:
    """Return the separator that occurs most often outside of quotes; a comma if there is none."""
    bare = "".join(header.split('"')[::2])
    return max(SEPARATORS, key=bare.count)
