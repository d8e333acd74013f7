"""CSV logs with one row per turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from slaterl.data.formats.checks import check_fields, reading
from slaterl.data.formats.rows import LOG_FIELDS, Rows, check_list_lengths, first_true, place_of
from slaterl.errors import UserError

SEPARATORS = str.maketrans(dict.fromkeys("[](),;", " "))  # all separate like blanks
PARSED_AT_ONCE = 10_000  # rows; numbers as Python objects take ten times the memory of an array


def read(file: Path, slate_size: int) -> Rows:
    """Read the columns `session_id`, `turn`, `slate` and `clicks` of a UTF-8 file.

    The last two are S numbers as text, such as "[3, 14, 15]" or "3 14 15".

    Raises:
        UserError: the file is damaged; a column is missing; a turn or a value of a list is not a number; or a list
            does not have S values.
    """
    with reading(file):
        # all columns as text, because session 007 is not session 7; utf-8-sig skips a byte order mark
        table = pd.read_csv(file, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    check_fields(file, table.columns, LOG_FIELDS)
    if not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{file}: a row has more values than the header; lists with commas need quotes around them")
    sessions, turns = (table[name].to_numpy(dtype=object) for name in ("session_id", "turn"))
    numbers = pd.to_numeric(table["turn"], errors="coerce").to_numpy(dtype=np.float64)
    if np.isnan(numbers).any():
        (row,) = first_true(np.isnan(numbers))
        found = f"found {turns[row]!r}, expected a whole number"
        raise UserError(f"{file}: turn of session {sessions[row]} (row {row}): {found}")

    def lists(field: str) -> np.ndarray:
        """Parse a column of lists into [R, S]."""
        texts, parts = table[field].fillna("").tolist(), []
        for start in range(0, len(texts), PARSED_AT_ONCE):
            part = [text.translate(SEPARATORS).split() for text in texts[start : start + PARSED_AT_ONCE]]
            lengths = np.fromiter(map(len, part), np.int64, len(part))
            check_list_lengths(file, field, lengths, slate_size, sessions, turns, start)
            try:
                parts.append(np.array(part, dtype=np.float64))
            except ValueError as error:
                row = start + next((i for i, words in enumerate(part) if not all(map(_is_number, words))), 0)
                found = f"found {texts[row]!r}, expected numbers"
                raise UserError(f"{file}: {field} of {place_of(sessions, turns, row)}: {found}") from error
        return np.concatenate(parts) if parts else np.empty((0, slate_size))

    return Rows(str(file), LOG_FIELDS, sessions, numbers, lists("slate"), lists("clicks"))


def _is_number(word: str) -> bool:
    try:
        return float(word) is not None
    except ValueError:
        return False
