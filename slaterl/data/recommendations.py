"""Write recommended slates in the log's own ids, with the names of columns that dataset=log finds by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from slaterl.data.sessions import Sessions
from slaterl.runs.files import whole_file


def write(
    path: Path,
    slates: Tensor,
    items: Sequence[int] | Sequence[str] | None,
    sessions: Sessions | None,
    *,
    form: Literal["wide", "long"],
    format: Literal["parquet", "csv"],
) -> None:
    """Write a table, whole or not at all. It needs polars.

    The columns are `session`, `part` if the log was cut into parts, and then: wide, `item_0`, `item_1`, ...; long,
    `position`, which counts from 0, and `item`.

    Args:
        slates: [N, S] numbers of items, in the order of the sessions.
        items, sessions: a log's own ids; None for a dataset without any, whose numbers are written.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    import polars as pl

    count, size = slates.shape
    each = 1 if form == "wide" else size
    place, part = (np.arange(count), None) if sessions is None else sessions.id_and_part()
    place = np.repeat(place, each)
    names = pl.Series("session", place if sessions is None else sessions.ids)
    frame = pl.DataFrame({"session": names if sessions is None else names.gather(place)})
    if part is not None:
        frame = frame.with_columns(pl.Series("part", np.repeat(part, each)))

    def named(column: str, numbers: np.ndarray) -> pl.Series:
        return (pl.Series(numbers) if items is None else pl.Series(items).gather(numbers)).alias(column)

    codes = slates.numpy()
    if form == "wide":
        frame = frame.with_columns([named(f"item_{slot}", codes[:, slot]) for slot in range(size)])
    else:
        position = pl.Series("position", np.tile(np.arange(size, dtype=np.int32), count))
        frame = frame.with_columns(position, named("item", codes.ravel()))
    with whole_file(path) as partial:
        if format == "parquet":
            frame.write_parquet(partial)
        else:
            frame.write_csv(partial)
