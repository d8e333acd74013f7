"""fit: what it says when it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from slaterl.layers import products_by
from slaterl.training import checkpoints
from slaterl.training.epochs import Epochs
from slaterl.training.fit import Schedule, fit
from slaterl.training.learner import Learner


class Line(Learner):
    """The smallest learner."""

    TERMS: ClassVar = ("loss/line",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.add_optimizer("line", self.weight, lr=0.1)

    def update(self, batch: Tensor) -> dict[str, Tensor]:
        loss = self.weight.square().sum()
        self.minimise("line", loss)
        return {"loss/line": loss}


class Numbers(Epochs):
    UNIT: ClassVar = "numbers"

    def take(self, index: Tensor) -> Tensor:
        return index


def train(folder: Path, max_steps: int) -> None:
    learner = Line()

    def validate() -> dict[str, float]:
        return {"val/weight": learner.weight.item()}

    about: dict[str, Any] = {"kind": "line", "config": {}, "title": "line", "loggers": []}
    about |= {"validate": validate, "validated": ["val/weight"], "score": "val/weight", "maximise": False}
    schedule = Schedule(max_steps=max_steps, val_every_n_steps=2, log_every_n_steps=1)
    data = Numbers(learner, 2, batch_size=1, epochs=max_steps // 2, seed=0)
    fit(learner, data, folder=folder, schedule=schedule, **about)


def test_resuming_with_another_number_of_threads_warns(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for max_steps, threads, told in ((2, 1, ""), (4, 1, ""), (6, 2, "threads=2"), (8, 2, ""), (10, 1, "threads=1")):
        torch.set_num_threads(threads)
        train(tmp_path, max_steps)
        assert checkpoints.load(tmp_path / "last.ckpt", "line")["threads"] == threads
        shown = capsys.readouterr().err
        assert ("resuming from" in shown) == (max_steps > 2)
        if told:
            before = f"{tmp_path / 'last.ckpt'} was written with threads={3 - threads}"
            rest = "the results will differ from those of an undisturbed run"
            assert f"warning: {told}, but {before}; {rest}" in " ".join(shown.split())
        else:
            assert "warning" not in shown


def test_resuming_where_something_else_multiplies_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    torch.set_num_threads(1)
    train(tmp_path, 2)
    monkeypatch.setattr("slaterl.training.fit.products_by", lambda: "openblas, AVX2")
    capsys.readouterr()
    train(tmp_path, 4)
    shown = " ".join(capsys.readouterr().err.split())
    assert "warning: products_by=openblas, AVX2, but " in shown
    assert f"was written with products_by={products_by()}; the results will differ" in shown
    train(tmp_path, 6)
    assert "warning" not in capsys.readouterr().err


def test_older_checkpoints_resume_silently(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(tmp_path, 2)
    state = checkpoints.load(tmp_path / "last.ckpt", "line")
    del state["threads"], state["products_by"], state["format"]
    checkpoints.save(tmp_path / "last.ckpt", state)
    capsys.readouterr()
    torch.set_num_threads(2)
    train(tmp_path, 4)
    shown = capsys.readouterr().err
    assert "resuming from step 2" in shown and "warning" not in shown
