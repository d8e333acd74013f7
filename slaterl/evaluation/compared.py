"""Estimates of policies next to their returns in the simulator: rows of a result, rank correlation, picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import DictConfig
from scipy import stats

from slaterl.console import note, with_interval
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.evaluation.evaluate import evaluate
from slaterl.rollout import Policy
from slaterl.runs.files import whole_file

FEWEST = 5  # distinct policies for a rank correlation


def checkpoints_in(given: str | None, evaluation: str) -> list[Path]:
    """Return the checkpoint, or the checkpoints in a run's folder in the order of their steps.

    Raises:
        UserError: none is given, or the folder has none.
    """
    if given is None:
        unlearned = "agents that do not learn have none, and evaluation=user_model estimates them"
        needed = f"evaluation={evaluation} needs checkpoint=<a checkpoint, or the folder of a run>"
        raise UserError(f"checkpoint: {needed}; {unlearned}")
    if not Path(given).is_dir():
        return [Path(given)]
    steps = sorted(Path(given).glob("*step*.ckpt"), key=lambda file: (int(file.stem.rpartition("step")[2]), file.stem))
    files = [*steps, *Path(given).glob("best.ckpt")]
    if not files:
        raise UserError(f"checkpoint={given}: no checkpoints in this folder")
    return files


def row_of(
    name: str, agent: str, step: int, found: Mapping[str, Any], policy: Policy, env: Env | None, cfg: DictConfig
) -> dict[str, Any]:
    """Return the entries of a policy in a result.

    Args:
        name: of its checkpoint.
        found: estimate, interval and more.
        env: the simulator to test it in; None if there is none, or if the data are from elsewhere.
    """
    row = {"checkpoint": name, "agent": agent, "step": step, **found, "simulated": None, "simulated_interval": None}
    if env is not None:
        served = evaluate(policy, env, cfg.test_users, cfg.seed, "test")
        row |= {"simulated": served.mean_return, "simulated_interval": served.interval}
    return row


def correlated(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `rank_correlation`, Spearman's, of estimate and simulator, and its 95 % interval.

    The correlation is None below five distinct policies, or if all have the same estimate or return. Then there is no
    interval.
    """
    # best.ckpt often equals another checkpoint; the same policy counts as one point
    points = {(row["estimate"], row["simulated"]) for row in rows if row["simulated"] is not None}
    if len(points) < FEWEST or any(len(set(side)) == 1 for side in zip(*points, strict=True)):
        return {"rank_correlation": None}
    found = float(stats.spearmanr(*zip(*points, strict=True)).statistic)
    return {"rank_correlation": found, "rank_correlation_interval": list(interval_of(found, len(points)))}


def interval_of(correlation: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a rank correlation over `count` policies.

    Fisher's z has the variance (1 + r^2 / 2) / (n - 3) (Bonett and Wright 2000). A perfect order of few policies says
    little, so r counts as halfway to the next smaller value that Spearman's can have.
    """
    most = 1 - 6 / (count * (count * count - 1))
    inner = min(max(correlation, -most), most)
    width = stats.norm.ppf(0.975) * math.sqrt((1 + inner * inner / 2) / (count - 3))
    low, high = (math.tanh(math.atanh(inner) + side * width) for side in (-1, 1))
    return min(low, correlation), max(high, correlation)


def draw(path: Path, rows: Sequence[Mapping[str, Any]], correlation: float | None, by: str) -> None:
    """Draw estimates over returns in the simulator, as PNG. `by` names the estimator."""
    figure = Figure(figsize=(5.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    simulated, estimates = ([row[key] for row in rows] for key in ("simulated", "estimate"))
    bars = [[row[key] for row in rows] for key in ("simulated_interval", "interval")]
    axis.errorbar(simulated, estimates, xerr=bars[0], yerr=bars[1], fmt="o", capsize=2, linewidth=1)
    for row in rows:
        label = row["checkpoint"].removesuffix(".ckpt")
        axis.annotate(label, (row["simulated"], row["estimate"]), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axis.axline((simulated[0], simulated[0]), slope=1, color="grey", linewidth=0.8, linestyle="--")
    axis.set_xlabel("return in the simulator (clicks per episode)")
    axis.set_ylabel(f"return by {by}")
    told = "" if correlation is None else f", rank correlation {correlation:.2f}"
    axis.set_title(f"{rows[0]['agent']}, {len(rows)} policies{told}", fontsize=10)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row for the terminal: checkpoint, step, estimate, and the return in the simulator."""
    shown = "" if row["simulated"] is None else with_interval(row["simulated"], row["simulated_interval"])
    return [row["checkpoint"], f"{row['step']:,}", with_interval(row["estimate"], row["interval"]), shown]


def tell_correlation(result: Mapping[str, Any]) -> None:
    """Print the rank correlation of a result, if it has one."""
    correlation = result["rank_correlation"]
    if correlation is None:
        return
    bounds = result.get("rank_correlation_interval")  # results of older versions have none
    told = "" if bounds is None else f" (95 %: {bounds[0]:.2f} to {bounds[1]:.2f})"
    note(f"rank correlation of estimate and simulator: {correlation:.2f}{told}")
