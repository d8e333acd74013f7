"""The .pt files of the published code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from slaterl.data.formats.read import FRAME_0_RECORDED
from tests.data.formats.logs import load, log, message, write
from tests.helpers import SLOTS, TURNS, tiny_trajectories


def test_pt_with_the_frame_of_reset(tmp_path: Path) -> None:
    data, metadata = load(write(tmp_path, "pt", log(frame_0=True)))
    expected = tiny_trajectories(3)
    assert torch.equal(data.slates, expected.slates) and torch.equal(data.clicks, expected.clicks)
    assert metadata == {"format": "pt", "source": "log.pt", "frame_0": FRAME_0_RECORDED}


def test_pt_with_and_without_the_frame_of_reset(tmp_path: Path) -> None:
    path = write(tmp_path, "pt", log(frame_0=True))
    sessions = torch.load(path)
    sessions[12] = {name: column[1:] for name, column in sessions[12].items()}
    torch.save(sessions, path)
    assert "session 12: found 6 turns, but session 40 has 7; expected the same number in all" in message(path)


@pytest.mark.parametrize("rows", [0, 1, TURNS - 1, TURNS + 2])
def test_pt_of_another_length(tmp_path: Path, rows: int) -> None:
    path = write(tmp_path, "pt", log())
    sessions = torch.load(path)
    sessions[7] = {name: column[:1].expand(rows, -1) for name, column in sessions[7].items()}
    torch.save(sessions, path)
    text = message(path)
    assert "session 7" in text and ("[0, 4]" if rows == 0 else f"found {rows} turns, expected 6 or 7") in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "list"),
        ({}, "no trajectories"),
        ({3: [1, 2]}, "session 3: found list"),
        ({3: {"slate": torch.zeros(TURNS, SLOTS)}}, "session 3: missing clicks; found slate"),
        ({3: {"slate": [[1]], "clicks": [[1]]}}, "slate of session 3: found list, expected a tensor"),
        (
            {3: {"slate": torch.zeros(6), "clicks": torch.zeros(6)}},
            "slate of session 3: found [6], expected [turns, 4]",
        ),
        ({3: {"slate": torch.zeros(6, 5), "clicks": torch.zeros(6, 5)}}, "slate of session 3: found [6, 5]"),
        ({3: {"slate": torch.zeros(6, 4), "clicks": torch.zeros(5, 4)}}, "clicks of session 3: found [5, 4]"),
    ],
)
def test_pt_of_something_else(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "log.pt")
    assert words in message(tmp_path / "log.pt")


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def test_pt_runs_no_code(tmp_path: Path) -> None:
    torch.save({3: Code()}, tmp_path / "log.pt")
    assert "cannot be read" in message(tmp_path / "log.pt")
