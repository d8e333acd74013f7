"""`fit` stops when its patience ends, also if it was interrupted in between."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from slaterl import console
from slaterl.errors import Interrupted
from slaterl.seeds import stream
from slaterl.training import metrics
from slaterl.training.epochs import Epochs
from slaterl.training.fit import Schedule, fit
from slaterl.training.learner import Learner

STEPS = 3  # of an epoch


class Walk(Learner):
    """A weight that moves at random: resuming is exact only if the stream resumes, too."""

    TERMS: ClassVar = ("loss/walk",)

    def __init__(self, after: Callable[[int], None]) -> None:
        super().__init__()
        self.weight, self.after = nn.Parameter(torch.zeros(1)), after
        self.generators["noise"] = stream(1, "walk")
        self.add_optimizer("walk", self, lr=0.1)

    def update(self, batch: Tensor) -> dict[str, Tensor]:
        loss = (self.weight * torch.randn(1, generator=self.generators["noise"])).sum()
        self.minimise("walk", loss)
        self.after(self.step)
        return {"loss/walk": loss}


class Numbers(Epochs):
    UNIT: ClassVar = "numbers"

    def take(self, index: Tensor) -> Tensor:
        return index


class Killed(Exception):
    """What a SIGKILL does to the files: nothing is saved after it."""


def trained(
    folder: Path,
    losses: list[float],
    patience: int | None = 2,
    min_delta: float = 0.0,
    *,
    after: Callable[[int], None] = lambda step: None,
    maximise: bool = False,
) -> tuple[dict[str, Any], Walk]:
    """Fit with the given validation losses, one for each epoch."""
    learner = Walk(after)
    data = Numbers(learner, 2 * STEPS, batch_size=2, epochs=len(losses), seed=1)
    outcome = fit(
        learner,
        data,
        folder=folder,
        kind="test",
        config={},
        schedule=Schedule(
            max_steps=data.max_steps,
            val_every_n_steps=STEPS,
            log_every_n_steps=1,
            patience=patience,
            min_delta=min_delta,
        ),
        validate=lambda: {"val/loss": losses[learner.step // STEPS - 1]},
        validated=["val/loss"],
        score="val/loss",
        maximise=maximise,
        loggers=[],
        title="test",
    )
    return outcome, learner


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "epochs", "best"),
    [
        ([5, 4, 3, 2, 1], 1, 0.0, 5, 5),
        ([5, 4, 4, 4, 1], 2, 0.0, 4, 2),  # an equal loss is no better one
        ([5, 6, 1, 1, 1], 1, 0.0, 2, 1),
        ([5, 6, 4, 6, 6, 1], 2, 0.0, 5, 3),  # a better one sets the count to zero
        ([5, 4.75, 4.5, 4, 3], 2, 0.5, 3, 3),  # lower, but not by more than min_delta: still the best
        ([5, 4.75, 4, 4, 4], 2, 0.5, 5, 3),
        ([5, 4.5, 4, 1], 2, 0.5, 3, 3),  # by exactly min_delta is not more
        ([5, 6, 6, 6, 1], None, 0.0, 5, 5),
        ([5, 6, 6], 2, 0.0, 3, 1),  # the patience ends with the last epoch
    ],
)
def test_stops_when_the_patience_ends(
    losses: list[float], patience: int | None, min_delta: float, epochs: int, best: int, tmp_path: Path
) -> None:
    outcome, learner = trained(tmp_path, losses, patience, min_delta)
    assert learner.step == epochs * STEPS
    assert (outcome["best_step"], outcome["best_score"]) == (best * STEPS, losses[best - 1])
    rows = metrics.read(tmp_path / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, epochs * STEPS + 1))
    assert (tmp_path / "last.ckpt").is_file()


def test_a_larger_score_can_be_the_better_one(tmp_path: Path) -> None:
    assert trained(tmp_path / "up", [1, 2, 3, 4], 1, maximise=True)[1].step == 4 * STEPS
    assert trained(tmp_path / "down", [4, 3, 2, 1], 1, maximise=True)[1].step == 2 * STEPS


def test_the_progress_ends_at_its_total(tmp_path: Path) -> None:
    known: dict[str, Any] = {}
    with console.listening(known.update):
        trained(tmp_path, [5, 6, 6, 1, 1])
    assert (known["done"], known["total"]) == (3 * STEPS, 3 * STEPS)


def dies(at: int, how: str) -> Callable[[int], None]:
    """Ends the training in update `at`: by a signal, which saves the state, or by a crash, which does not."""

    def after(step: int) -> None:
        if step == at and how == "signal":
            signal.raise_signal(signal.SIGTERM)
        elif step == at:
            raise Killed

    return after


LOSSES = [5.0, 4.0, 4.5, 4.5, 4.5, 1.0, 0.0]  # with a patience of 3 over after epoch 5


@pytest.mark.parametrize("how", ["signal", "kill"])
@pytest.mark.parametrize("at", [7, 9, 10, 11, 12, 14, 15])
def test_an_interrupted_run_counts_on(how: str, at: int, tmp_path: Path) -> None:
    expected, undisturbed = trained(tmp_path / "undisturbed", LOSSES, 3)
    with pytest.raises((Interrupted, Killed)):
        trained(tmp_path / "again", LOSSES, 3, after=dies(at, how))
    found, resumed = trained(tmp_path / "again", LOSSES, 3)
    assert resumed.step == undisturbed.step == 5 * STEPS
    assert torch.equal(resumed.weight, undisturbed.weight)
    del found["seconds"], expected["seconds"]
    assert found == expected
    one, other = (
        [
            {key: value for key, value in row.items() if not key.startswith(("time/", "speed/"))}
            for row in metrics.read(tmp_path / name / "metrics.csv")
        ]
        for name in ("undisturbed", "again")
    )
    assert one == other


def test_a_run_that_stopped_early_is_over(tmp_path: Path) -> None:
    """It was killed before result.json was written: the next start must not train on."""
    first, _ = trained(tmp_path, LOSSES, 3)

    def never(step: int) -> None:
        raise AssertionError(f"trained on to step {step}")

    again, learner = trained(tmp_path, LOSSES, 3, after=never)
    assert learner.step == 5 * STEPS
    assert (again["best_step"], again["best_score"]) == (first["best_step"], first["best_score"])


def test_a_checkpoint_without_the_count_resumes(tmp_path: Path) -> None:
    """Older versions did not write it."""
    with pytest.raises(Killed):
        trained(tmp_path, LOSSES, None, after=dies(10, "kill"))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del state["stale"]
    torch.save(state, tmp_path / "last.ckpt")
    assert trained(tmp_path, LOSSES, None)[1].step == len(LOSSES) * STEPS
