"""NumPy archives in the layout of D4RL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.formats.logs import FIELDS, log, message, write


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def test_npz_runs_no_code(tmp_path: Path) -> None:
    np.savez(tmp_path / "log.npz", **dict.fromkeys(FIELDS["npz"].values(), np.array([Code()], dtype=object)))
    assert "cannot be read" in message(tmp_path / "log.npz")


@pytest.mark.parametrize(
    ("field", "column", "words"),
    [
        ("clicks", np.zeros((18, 3)), "clicks: found [18, 3], expected [18, 4]"),
        ("clicks", np.zeros((17, 4)), "clicks: found [17, 4], expected [18, 4]"),
        ("slates", np.zeros((3, 6, 4)), "slates: found [3, 6, 4], expected"),
        ("slates", np.full((18, 4), "3"), "slates: found values of type <U1, expected item ids"),
        ("slates", np.zeros((18, 4), dtype=bool), "slates: found values of type bool, expected item ids"),
        ("sessions", np.zeros(17), "episode_ids: found [17], expected [18]"),
        ("turns", np.zeros((18, 1)), "timesteps: found [18, 1], expected [18]"),
    ],
)
def test_npz_of_other_shapes_and_types(tmp_path: Path, field: str, column: np.ndarray, words: str) -> None:
    assert words in message(write(tmp_path, "npz", log() | {field: column}))


def test_npz_of_one_array(tmp_path: Path) -> None:
    np.save(tmp_path / "log.npy", np.zeros(3))
    assert "found one array, expected an .npz archive" in message((tmp_path / "log.npy").rename(tmp_path / "log.npz"))
