"""Logs of three sessions as files of every format, and how tests read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slaterl.data.formats.read import read
from slaterl.errors import UserError
from tests.helpers import ITEMS, SLOTS, TURNS, tiny_trajectories

FIRST = torch.tensor([7, 3, 20, 11])
SESSIONS = [40, 7, 12]  # in this order of appearance
TABLES = ["npz"]
FORMATS = [*TABLES, "pt"]
LOG = {"sessions": "session_id", "turns": "turn", "slates": "slate", "clicks": "clicks"}
FIELDS = {kind: LOG for kind in FORMATS}
FIELDS["npz"] = {"sessions": "episode_ids", "turns": "timesteps", "slates": "slates", "clicks": "clicks"}

Log = dict[str, Any]


def log(frame_0: bool = False) -> Log:
    """Return rows of three sessions: `sessions` and `turns` [R], `slates` and `clicks` [R, S], all int64."""
    data = tiny_trajectories(len(SESSIONS))
    first = 0 if frame_0 else 1
    rows = data.slates[:, first:].shape[1]
    return {
        "sessions": np.repeat(SESSIONS, rows),
        "turns": np.tile(np.arange(rows), len(SESSIONS)),
        "slates": data.slates[:, first:].reshape(-1, SLOTS).long().numpy(),
        "clicks": data.clicks[:, first:].reshape(-1, SLOTS).long().numpy(),
    }


def write(folder: Path, kind: str, rows: Log, leave_out: str = "") -> Path:
    """Write the rows as a file of that kind, without the field `leave_out`."""
    path = folder / f"log.{kind}"
    columns = {FIELDS[kind][name]: column for name, column in rows.items() if name != leave_out}
    if kind == "npz":
        np.savez(path, **columns)
    else:
        here = {name: rows["sessions"] == name for name in dict.fromkeys(rows["sessions"].tolist())}
        fields = {"slate": "slates", "clicks": "clicks"}
        torch.save(
            {
                session: {
                    field: torch.as_tensor(rows[name][mask]) for field, name in fields.items() if name != leave_out
                }
                for session, mask in here.items()
            },
            path,
        )
    return path


def load(path: Path | str, **sizes: Any) -> Any:
    expected = dict(num_items=ITEMS, slate_size=SLOTS, episode_length=TURNS, first_slate=FIRST)
    return read(str(path), **(expected | sizes))


def message(path: Path | str, **sizes: Any) -> str:
    """Return the message of `read`, which must name the source."""
    with pytest.raises(UserError) as found:
        load(path, **sizes)
    assert str(path) in str(found.value)
    return str(found.value)
