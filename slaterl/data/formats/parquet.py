"""Parquet logs with one row per turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slaterl.data.formats.checks import check_fields, reading, require_package
from slaterl.data.formats.rows import LOG_FIELDS, Rows, check_list_lengths
from slaterl.errors import UserError


def read(file: Path, slate_size: int) -> Rows:
    """Read the columns `session_id`, `turn`, `slate` and `clicks`; the last two are lists of S numbers.

    Raises:
        UserError: PyArrow is not installed, the file is damaged, or a column is missing or has another type; a list
            does not have S values.
    """
    require_package("pyarrow", "parquet", str(file))
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with reading(file), pq.ParquetFile(file) as source:
        check_fields(file, source.schema_arrow.names, LOG_FIELDS)
        table = source.read(columns=list(LOG_FIELDS))
        sessions, turns = table["session_id"].to_pandas().to_numpy(), table["turn"].to_numpy()

    def lists(field: str) -> np.ndarray:
        """Return a column of lists as [R, S]."""
        column, kind = table[field], table[field].type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not is_list or not (pa.types.is_primitive(kind.value_type) and not pa.types.is_temporal(kind.value_type)):
            raise UserError(f"{file}: {field}: found values of type {kind}, expected lists of numbers")
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        check_list_lengths(file, field, lengths, slate_size, sessions, turns)
        values = pc.list_flatten(column)
        if pa.types.is_boolean(kind.value_type):
            values = values.cast(pa.int8())  # an int8 null becomes NaN, which the checks report
        return values.to_numpy().reshape(-1, slate_size)

    return Rows(str(file), LOG_FIELDS, sessions, turns, lists("slate"), lists("clicks"))
