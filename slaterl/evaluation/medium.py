"""The half-trained checkpoint of an online run, found by its validation return."""

from __future__ import annotations

from pathlib import Path

from slaterl.config.dataset import MEDIUM
from slaterl.data.score import normalised
from slaterl.errors import UserError
from slaterl.runs.run import Run
from slaterl.training import metrics


def medium_checkpoint(run: Run, *, sampled: bool) -> Path:
    """Return the checkpoint whose normalised validation return is nearest to 50, if it lies in 35..65.

    Normalised is 100 * (val - random) / (expert - random). `random` is the return of random slates on the test users,
    `expert` the best validation return without exploration.

    Args:
        run: a finished online run.
        sampled: whether the checkpoint will act with exploration; then val is the return with exploration. Runs of
            older versions measured only the other one.

    Raises:
        UserError: no kept checkpoint lies in that range.
    """
    result, file = run.result(), run.path / "metrics.csv"
    values = dict(zip(*metrics.curve(file, "val/return_sampled"), strict=True)) if sampled else {}
    values = values or dict(zip(*metrics.curve(file, "val/return"), strict=True))
    found = {}
    for path in run.path.glob("*step*.ckpt"):
        step = int(path.stem.rpartition("step")[2])
        score = normalised(values.get(step), result["random_return"], result["val_return"])
        if score is not None:
            found[step] = (score, path)
    low, wanted, high = MEDIUM
    if found:
        score, path = min(found.values(), key=lambda one: (abs(one[0] - wanted), str(one[1])))
        if low <= score <= high:
            return path
    listed = ", ".join(f"step {step:,} ({found[step][0]:.0f})" for step in sorted(found)) or "none with a score"
    raise UserError(
        f"dataset.run.medium_step=null: no checkpoint in {run.path} has a normalised validation return of {low} to "
        f"{high} (random slates: 0, its best: 100); there are {listed}; choose one by dataset.run.medium_step=<step>"
    )
