"""Values of a log's columns: ids as numbers, turns and times, clicks, lists. R rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from slaterl.errors import UserError

WHOLE = r"^(0|-?[1-9]\d{0,17})$"  # 007 is text
PARTS = r"""\"[^\"]*\"|'[^']*'|[^\s,;|\[\](){}\"']+"""  # of a list in text; quotes keep blanks and commas together
FLOAT_WHOLE = r"^(0|-?[1-9]\d{0,17})\.0+$"  # as pandas writes whole numbers of a column with gaps
# numbers that are a date and a time, as 20240517083000: the least, the one after the largest, and their parts
CALENDAR = (
    (1900_01_01_00_00, 2100_01_01_00_00, "%Y%m%d%H%M"),
    (1900_01_01_00_00_00, 2100_01_01_00_00_00, "%Y%m%d%H%M%S"),
    (1900_01_01_00_00_00_000, 2100_01_01_00_00_00_000, "%Y%m%d%H%M%S%3f"),
)
MOSTLY = 0.99  # share of the values that tells what a column holds
UNITS = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3), (1e8, 1.0))  # numbers from here on are times; seconds of one
GAP = re.compile(r"(\d+(?:\.\d+)?) *(s|m|h|d)")


@dataclass(frozen=True)
class Place:
    """Names the rows of a log in messages.

    Attributes:
        where: the file.
        sessions: the sessions' names, [R].
        turns: the turns as written, [R]; None if the order of the rows counts.
        numbered: whether the turns are numbers, so that a session has each once; times can be equal.
    """

    where: str
    sessions: pl.Series
    turns: pl.Series | None
    numbered: bool = True

    def __call__(self, row: int) -> str:
        turn = "" if self.turns is None else f", turn {self.turns[row]}"
        return f"session {self.sessions[row]}{turn} (row {row})"

    def wrong(self, column: str, row: int, found: Any, expected: str) -> UserError:
        shown = "nothing" if found is None else repr(found) if isinstance(found, str) else str(found)
        return UserError(f"{self.where}: {column} of {self(row)}: found {shown}, expected {expected}")


@dataclass(frozen=True)
class Ids:
    """Ids of any kind as numbers in the order of the ids.

    Attributes:
        codes: [R] int64, 0..N-1.
        names: the N ids, whole numbers or text.
    """

    codes: np.ndarray
    names: list[int] | list[str]


def ids_of(column: pl.Series) -> Ids:
    """Number ids in rising order: by value if all are whole numbers, else as text. There must be no nulls."""
    if column.dtype.is_float():
        whole = (column == column.floor()).all() and column.is_finite().all()
        column = column.cast(pl.Int64 if whole else pl.String)
    if column.dtype.is_integer() and column.dtype != pl.UInt64:
        names = column.unique().sort()
        return Ids(names.search_sorted(column).to_numpy().astype(np.int64), names.to_list())
    column = column.cast(pl.String)
    names = column.unique()
    if names.str.contains(f"{WHOLE}|{FLOAT_WHOLE}").all() and names.str.contains(FLOAT_WHOLE).any():
        column = column.str.replace(r"\.0+$", "")
        names = column.unique()
    if names.str.contains(WHOLE).all():
        order = names.cast(pl.Int64).arg_sort()
        texts, listed = names[order], names.cast(pl.Int64)[order].to_list()
    else:
        texts = names.sort()
        listed = texts.to_list()
    codes = column.cast(pl.Enum(texts)).to_physical()
    return Ids(codes.to_numpy().astype(np.int64), listed)


def joined(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """Return a column, or several as one text that tells all of their values apart; null where one of them is empty."""
    frame = frame.select(pl.col(name).fill_nan(None) if frame[name].dtype.is_float() else name for name in columns)
    if len(columns) == 1:
        return frame[columns[0]]
    texts = [frame[name].cast(pl.String) for name in columns]
    # "a b" and "c" are other values than "a" and "b c"
    free = (sign for sign in " /|" if not any(text.str.contains(sign, literal=True).any() for text in texts))
    separator = next(free, None)
    if separator is None:
        separator, texts = " ", [text.str.replace_all(r"([\\ ])", r"\$1") for text in texts]
    return pl.select(pl.concat_str(texts, separator=separator)).to_series()


def first_empty(column: pl.Series) -> int | None:
    """Return the first row without a value; text without a character is none, and neither is a float's NaN."""
    empty = column.is_null()
    if column.dtype.is_float():
        empty = empty | column.is_nan().fill_null(False)
    if column.dtype == pl.String:
        empty = empty | (column == "").fill_null(False)
    return first_of(empty)


def first_of(mask: pl.Series) -> int | None:
    """Return the first row where a mask is true."""
    return int(mask.to_numpy().argmax()) if mask.any() else None


def times_of(place: Place, name: str, column: pl.Series) -> tuple[np.ndarray, float | None]:
    """Return turns or times as numbers [R], and the seconds of one if they are times.

    Text can be a number, or a date with a time: ISO 8601, with or without fractions and offset.

    Raises:
        UserError: names the first row that is neither.
    """
    unit: float | None = None
    if column.dtype == pl.String:
        sample = column.head(1000)
        numbers = sample.str.strip_chars().cast(pl.Float64, strict=False)
        if numbers.null_count() * 2 <= len(sample):
            parsed = column.str.strip_chars().cast(pl.Int64, strict=False)
            if parsed.null_count():
                parsed = column.str.strip_chars().cast(pl.Float64, strict=False)
            expected = "a whole number, or a time"
        else:
            parsed, unit, expected = _dates(column), 1e-6, "a time such as 2024-05-17 08:30:00"
    elif column.dtype.is_temporal() and column.dtype in (pl.Date, pl.Datetime):
        parsed, unit, expected = column.cast(pl.Datetime("us")).cast(pl.Int64), 1e-6, "a time"
    elif column.dtype.is_numeric():
        parsed, expected = column, "a number or a time"
    else:
        raise UserError(f"{place.where}: {name}: found values of type {column.dtype}, expected numbers or times")
    if unit is None:
        calendar = _calendar(parsed)
        if calendar is not None:
            parsed, unit, expected = calendar, 1e-6, "a time such as 20240517083000"
    wrong = parsed.is_null()
    if parsed.dtype.is_float():
        wrong = wrong | ~parsed.is_finite().fill_null(False)
    if (row := first_of(wrong)) is not None:
        raise UserError(
            f"{place.where}: {name} of session {place.sessions[row]} (row {row}): found {column[row]!r}, "
            f"expected {expected}"
        )
    values = parsed.to_numpy()
    if unit is None and len(values):
        middle = float(np.median(values))
        unit = next((seconds for least, seconds in UNITS if middle >= least), None)
    return values, unit


def _calendar(numbers: pl.Series) -> pl.Series | None:
    """Read numbers such as 20240517083000 as microseconds since 1970, null where one is no time.

    None if most of them are none: a number of milliseconds, or a turn.
    """
    middle = numbers.median()
    if not isinstance(middle, float):
        return None
    for least, end, parts in CALENDAR:
        if least <= middle < end:
            text = numbers.cast(pl.Int64, strict=False).cast(pl.String)
            found = text.str.to_datetime(parts, time_unit="us", strict=False).cast(pl.Int64)
            return found if found.null_count() <= (1 - MOSTLY) * len(found) else None
    return None


def _dates(column: pl.Series) -> pl.Series:
    """Parse ISO 8601 and 2024/05/17; microseconds since 1970 in UTC, null where the text is no time."""
    found = column.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False).cast(pl.Int64)
    left = found.is_null()
    return found.scatter(left.arg_true(), _other_dates(column.filter(left))) if left.any() else found


def _other_dates(column: pl.Series) -> pl.Series:
    """Parse times with T, with an offset from UTC, with slashes, without seconds or without a time of day."""
    text = column.str.strip_chars().str.replace("T", " ", literal=True).str.replace_all("/", "-", literal=True)
    text = text.str.replace(r" ?(Z|UTC)$", "")
    offset = text.str.extract(r":\d\d(?:\.\d+)? ?([+-]\d\d:?\d\d)$", 1)
    plain = text.str.replace(r"(:\d\d(?:\.\d+)?) ?[+-]\d\d:?\d\d$", "$1")
    found = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    for more in (
        plain.str.to_datetime("%Y-%m-%d %H:%M", time_unit="us", strict=False),
        plain.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")),
    ):
        found = found.zip_with(found.is_not_null(), more)
    minutes = offset.str.slice(1, 2).cast(pl.Int64) * 60 + offset.str.slice(-2).cast(pl.Int64)
    sign = offset.str.starts_with("-").cast(pl.Int64) * -2 + 1
    return found.cast(pl.Int64) - (minutes * sign * 60_000_000).fill_null(0)


def zero_or_one(column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return clicks [R] uint8, and which values are none: neither 0 or 1 nor true or false."""
    if column.dtype == pl.String:
        clean = column.str.strip_chars().str.to_lowercase()
        yes, no = clean.is_in(["1", "true", "1.0"]), clean.is_in(["0", "false", "0.0"])
    elif column.dtype == pl.Boolean:
        yes, no = column, ~column
    elif column.dtype.is_numeric():
        yes, no = column == 1, column == 0
    else:
        return np.zeros(len(column), np.uint8), np.ones(len(column), bool)
    yes, no = yes.fill_null(False), no.fill_null(False)
    return yes.cast(pl.UInt8).to_numpy(), ~(yes | no).to_numpy()


def numbers_of(column: pl.Series) -> pl.Series:
    """Return numbers as float64; null where the text is none."""
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    return column.cast(pl.Float64, strict=False).fill_nan(None)


def lists_of(where: str, name: str, column: pl.Series) -> pl.Series:
    """Return a column of lists; text such as "[3, 14, 15]", "3 14 15" or '["a b", "c"]' is taken apart.

    Raises:
        UserError: the column holds something else.
    """
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    if isinstance(column.dtype, pl.List):
        return column
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:  # a slate of one item
        return column.to_frame().select(pl.concat_list(pl.all())).to_series()
    if column.dtype != pl.String:
        raise UserError(f"{where}: {name}: found values of type {column.dtype}, expected lists")
    parts = column.str.extract_all(PARTS)
    if column.str.contains("[\"']").any():
        parts = parts.list.eval(pl.element().str.strip_chars("\"'"))
    return parts


def seconds_of(gap: str) -> float:
    """Return the seconds of 45s, 30m, 12h or 1d."""
    match = GAP.fullmatch(gap)
    assert match, gap  # checked with the settings
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
