"""Checkpoints that a run keeps by their scores, also when it is cut off."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from slaterl.training import checkpoints
from slaterl.training.fit import Schedule, fit
from slaterl.training.kept import Kept
from tests.training.test_fit import Line, Numbers

# a fall to 5 and a plateau, as returns are in training
SCORES = [5.0, 20, 20, 50, 35, 80, 98, 99, 100, 97, 60, 99, 98, 100, 97, 99]


class Stopped(Exception):
    """Raised in the middle of training."""


class Scored(Line):
    TERMS: ClassVar = ("loss/line",)

    def score(self) -> float:
        return SCORES[self.step - 1]


def train(folder: Path, stop: int | None = None, where: str = "") -> None:
    """Train to the end; or raise Stopped when `where` (update, kept or last) is reached at the step `stop`."""
    learner = Scored()
    update, save = learner.update, checkpoints.save

    def updating(batch: Any) -> Any:
        if where == "update" and learner.step == stop:
            raise Stopped
        return update(batch)

    def saving(path: Path, state: dict[str, Any]) -> None:
        if learner.step == stop and path.name.startswith(where or "-") and where != "update":
            if where == "kept":
                save(path, state)
            raise Stopped
        save(path, state)

    learner.update = updating  # type: ignore[method-assign]
    about: dict[str, Any] = {"kind": "line", "config": {}, "title": "line", "loggers": []}
    about |= {"validate": lambda: {"score": learner.score()}, "validated": ["score"]}
    schedule = Schedule(max_steps=len(SCORES), val_every_n_steps=1, log_every_n_steps=1, keep=5)
    data = Numbers(learner, 2, batch_size=1, epochs=len(SCORES) // 2, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save", saving)
        fit(learner, data, folder=folder, schedule=schedule, score="score", maximise=True, **about)


def kept(folder: Path) -> dict[int, float]:
    """Weight by step of all kept checkpoints."""
    found = {}
    for file in folder.glob("kept-step*.ckpt"):
        state = checkpoints.load(file, "line")
        assert state["learner"].keys() == {"module", "step"} and "data" not in state
        found[state["learner"]["step"]] = state["learner"]["module"]["weight"].item()
    return found


def test_kept_checkpoints_spread_over_the_scores(tmp_path: Path) -> None:
    train(tmp_path)
    steps = sorted(kept(tmp_path))
    assert [SCORES[step - 1] for step in steps] == [5, 20, 50, 80, 100]
    state = checkpoints.load(tmp_path / "last.ckpt", "line")
    assert state["kept"] == {step: SCORES[step - 1] for step in steps}
    assert len(set(kept(tmp_path).values())) == 5


@pytest.mark.parametrize("stop", [1, 3, 6, 11, 15])
@pytest.mark.parametrize("where", ["update", "kept", "last"])
def test_a_kill_changes_nothing(where: str, stop: int, tmp_path: Path) -> None:
    train(tmp_path / "through")
    try:
        train(tmp_path / "cut", stop, where)
    except Stopped:
        listed = tmp_path / "cut" / "last.ckpt"
        assert not listed.exists() or checkpoints.load(listed, "line")["kept"].keys() <= kept(tmp_path / "cut").keys()
        train(tmp_path / "cut")
    assert kept(tmp_path / "cut") == kept(tmp_path / "through")


def test_a_kill_before_the_last_removal_leaves_no_file(tmp_path: Path) -> None:
    train(tmp_path)
    before = kept(tmp_path)
    shutil.copy(tmp_path / "best.ckpt", tmp_path / "kept-step12.ckpt")
    train(tmp_path)  # nothing is left to train
    assert kept(tmp_path) == before and not (tmp_path / "kept-step12.ckpt").exists()


def test_choice_depends_on_scores_and_is_small(tmp_path: Path) -> None:
    draw = random.Random(0)
    chosen = Kept(tmp_path, 12)
    for step in range(1, 101):
        chosen.add(step, 100 * (1 - 0.9**step) + draw.gauss(0, 3))
    scores = sorted(chosen.scores.values())
    assert len(scores) == 12 and max(b - a for a, b in itertools.pairwise(scores)) < 20
    assert not chosen.add(101, torch.nan) and not Kept(tmp_path, 0).add(1, 1.0)
    same = Kept(tmp_path, 3)
    for step in range(1, 6):
        same.add(step, 1.0)
    assert sorted(same.scores) == [1, 2, 5]  # of equal scores the earlier stay, between both ends
