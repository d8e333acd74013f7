"""NumPy archives with one row per turn, in the layout of D4RL."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slaterl.data.formats.checks import check_fields, reading
from slaterl.data.formats.rows import Rows
from slaterl.errors import UserError

FIELDS = ("episode_ids", "timesteps", "slates", "clicks")


def read(file: Path, slate_size: int) -> Rows:
    """Read `slates` and `clicks` [R, S], `episode_ids` and `timesteps` [R].

    Raises:
        UserError: the file is damaged, needs pickle, lacks an array, or has an array of another shape.
    """
    with reading(file):
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{file}: found one array, expected an .npz archive of {', '.join(FIELDS)}")
        with archive:
            check_fields(file, archive.files, FIELDS)
            sessions, turns, slates, clicks = (archive[name] for name in FIELDS)
    if slates.ndim != 2 or slates.shape[1] != slate_size:
        raise UserError(f"{file}: slates: found {list(slates.shape)}, expected [turns of all episodes, {slate_size}]")
    for name, column, shape in (
        ("clicks", clicks, slates.shape),
        ("episode_ids", sessions, slates.shape[:1]),
        ("timesteps", turns, slates.shape[:1]),
    ):
        if column.shape != shape:
            raise UserError(f"{file}: {name}: found {list(column.shape)}, expected {list(shape)} to match slates")
    return Rows(str(file), FIELDS, sessions, turns, slates, clicks)
