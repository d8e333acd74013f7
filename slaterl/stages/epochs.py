"""Shared by stage=pretrain and stage=mf: training over the epochs of logged data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from slaterl.runs.run import Run
from slaterl.training import checkpoints
from slaterl.training.curves import plot_curves
from slaterl.training.epochs import Epochs
from slaterl.training.fit import Schedule, fit
from slaterl.training.learner import Learner
from slaterl.training.loggers import make_loggers


def train_epochs(
    cfg: DictConfig,
    run: Run,
    learner: Learner,
    data: Epochs,
    *,
    kind: str,
    config: Mapping[str, Any],
    validate: Callable[[], dict[str, float]],
    validated: Sequence[str],
    score: str,
    title: str,
    curves: Sequence[str],
    patience: int | None = None,
    min_delta: float = 0.0,
) -> dict[str, Any]:
    """Fit a learner, give it the weights of its best epoch and draw its curves. Returns entries of the result.

    Args:
        kind, config: written into every checkpoint, see `fit`.
        validate: measures the learner on held-out data, after every epoch and once more at the end.
        validated: names of the metrics that `validate` returns.
        score: the metric that chooses the best epoch, by its smallest value.
        curves: columns of metrics.csv to draw.
        patience, min_delta: when to stop before the last epoch, see `Schedule`. A validation ends each epoch.
    """
    outcome = fit(
        learner,
        data,
        folder=run.path,
        kind=kind,
        config=dict(config),
        schedule=Schedule(
            max_steps=data.max_steps,
            val_every_n_steps=data.steps_per_epoch,
            log_every_n_steps=cfg.log_every_n_steps,
            patience=patience,
            min_delta=min_delta,
        ),
        validate=validate,
        validated=validated,
        score=score,
        maximise=False,
        loggers=make_loggers(cfg, run),
        title=title,
    )
    epochs = learner.step // data.steps_per_epoch
    best = checkpoints.load(run.path / "best.ckpt", kind)
    learner.load_state_dict(best["learner"]["module"])
    plot_curves(run.path / "curves.png", run.path / "metrics.csv", curves)
    return {
        **{name.replace("/", "_"): value for name, value in validate().items()},
        "best_step": outcome["best_step"],
        "epochs": epochs,
        "steps": learner.step,
        data.UNIT: data.size * epochs,
        "seconds": outcome["seconds"],
    }
