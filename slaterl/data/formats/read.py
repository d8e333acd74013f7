"""Read trajectories from files that slaterl did not write.

Each reader turns its source into `Rows`. This module picks the reader, and adds frame 0 if the source has none.
A new file format is one module with a function like `npz.read`, and one line in `READERS`. Logs in CSV or Parquet have
their own sizes and items, and `logs.py` reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slaterl.data.formats import minari, npz, published
from slaterl.data.formats.rows import Rows, by_session
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.runs.files import fingerprint_of

# readers by suffix, called with a file and S, the items in a slate
READERS: dict[str, Callable[[Path, int], Rows]] = {
    "npz": npz.read,
    "pt": published.read,
}

# values of `frame_0`, stored with the dataset
FRAME_0_MADE = (
    "the environment's first slate without clicks, made on import: the source begins with the first action's slate"
)
FRAME_0_RECORDED = "as in the source, which holds what the user saw before the first action"


def read(
    path: str, *, num_items: int, slate_size: int, episode_length: int, first_slate: Tensor
) -> tuple[Trajectories, dict[str, Any]]:
    """Read trajectories of N users over H turns from a file, or from a Minari dataset.

    - `minari:<dataset id>`: a dataset written by `minari.export`. Its frame 0 and policy_id are kept.
    - `.npz`, in the layout of D4RL: `slates` and `clicks` [N*H, S], `episode_ids` and `timesteps` [N*H].
    - `.pt` of the published code: {session: {"slate": [H, S], "clicks": [H, S]}}, starting with the first action. If
      every session has H + 1 rows, row 0 is the frame that reset returns.

    Sessions keep the order of their first appearance, and their rows may be interleaved. The turns of a session count
    up by one from any number. Messages count rows from 0, without a header.

    Args:
        path: a file, or `minari:<dataset id>`.
        num_items: size of the catalogue; item ids are 0..num_items - 1.
        slate_size: S, the number of items in a slate.
        episode_length: H, the number of turns of each session.
        first_slate: [S] the slate that reset shows, `TopicRec.first_slate`. It becomes frame 0 if the source has none.
            The source's first slate cannot be frame 0, because it is the first action, which no belief may see.

    Returns:
        Trajectories with slates and clicks [N, H+1, S] in their smallest types, and plain values about the source:
        `format`, `source` (the file's name without its folder), `frame_0` (its origin) and, for Minari, `exported`
        (the metadata given to `minari.export`).

    Raises:
        UserError: the source is missing, damaged or empty; a field is missing; a slate does not have S items, or its
            clicks have another shape; an item id is out of range, or a click is not 0 or 1; turns are missing,
            duplicated or out of order; a session does not have H turns; an optional package is not installed.
    """
    assert first_slate.shape == (slate_size,), f"first_slate: expected the shape [{slate_size}]"
    if path.startswith("minari:"):
        kind, source = "minari", path.removeprefix("minari:")
        rows = minari.read(source, slate_size)
    else:
        file = Path(path).expanduser()
        kind, source = file.suffix.lower().removeprefix("."), file.name
        if kind not in READERS:
            expected = f"minari:<dataset id>, or a file ending in {', '.join(f'.{suffix}' for suffix in READERS)}"
            raise UserError(f"{path}: unknown format; expected {expected}; dataset=log reads CSV and Parquet")
        if not file.exists():
            raise UserError(f"{path}: no such file")
        rows = READERS[kind](file, slate_size)

    with_frame_0, without = episode_length + 1, episode_length
    lengths = {True: [with_frame_0], False: [without], None: [without, with_frame_0]}[rows.has_frame_0]
    slates, clicks = by_session(rows, num_items, lengths)
    recorded = slates.shape[1] == with_frame_0
    if not recorded:
        slates = torch.cat([first_slate.cpu().to(slates.dtype).expand(len(slates), 1, -1), slates], dim=1)
        clicks = torch.cat([torch.zeros_like(clicks[:, :1]), clicks], dim=1)
    data = Trajectories(slates, clicks, policy_id=rows.policy_id).compact(num_items)
    about = {"format": kind, "source": source, "frame_0": FRAME_0_RECORDED if recorded else FRAME_0_MADE}
    return data, about if rows.exported is None else about | {"exported": rows.exported}


def source_fingerprint(source: str) -> str:
    """Return the fingerprint of a file, or of the files of a Minari dataset.

    Raises:
        UserError: the file or the dataset does not exist.
    """
    if source.startswith("minari:"):
        return minari.fingerprint(source.removeprefix("minari:"))
    if not Path(source).is_file():
        raise UserError(f"dataset.path={source}: no such file")
    return fingerprint_of(Path(source))
