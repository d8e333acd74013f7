"""The page of a user model: its quality next to the baselines, as Markdown and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from tabulate import tabulate

from slaterl.runs.files import whole_file
from slaterl.user_models.quality import BASELINES

OWN = "user model"


def doubt(result: Mapping[str, Any]) -> str | None:
    """Say why estimates by a user model say nothing; None if it predicts better than the baselines, beyond chance."""
    gain = result["advantage"]
    if gain["interval"] is None:
        return "one test session cannot tell whether the user model is any good"
    if gain["mean"] > gain["interval"]:
        return None
    return "the user model does not beat the baselines, so its estimates say nothing"


def verdict(result: Mapping[str, Any]) -> str:
    """Say in one line whether the model predicts better than the baselines, beyond chance."""
    name, gain = result["best_baseline"], result["advantage"]
    loss, other = result["quality"]["log_loss"], result["baselines"][name]["log_loss"]
    compared = f"log-loss {loss:.5f}, and {other:.5f} by the {BASELINES[name]}"
    if gain["interval"] is not None:
        compared += f" (difference {gain['mean']:.5f} ± {gain['interval']:.5f})"
    why_not = doubt(result)
    if why_not is None:
        return f"The user model beats all three baselines on sessions that it has not seen: {compared}."
    return f"**{why_not[0].upper()}{why_not[1:]}**: {compared}."


def as_markdown(result: Mapping[str, Any], picture: str = "user_model.png") -> str:
    """Write the page of a result of stage=user_model.

    Args:
        picture: path of the figure, relative to the page.
    """
    own, others = result["quality"], result["baselines"]
    shown = {OWN: own, **{BASELINES[name]: other for name, other in others.items()}}
    ranks = range(len(own["ranks"]))
    sections = [
        f"# User model of {result['dataset']} on {result['env']}",
        verdict(result),
        f"{result['members']} members learned from {result['sessions']:,} sessions. The figures below are those of "
        f"their mean prediction on {result['test_sessions']:,} other sessions with {result['test_turns']:,} turns.",
        f"![Calibration and quality by rank]({picture})",
        "## Clicks",
        _table(
            ["", "log-loss", "AUC", "R2 of the clicks of a turn"],
            [[name, _n(part["log_loss"], 5), _n(part["auc"]), _n(part["r2"])] for name, part in shown.items()],
        ),
        "## By rank",
        _table(
            ["rank", "click rate", *(f"log-loss: {name}" for name in shown), "AUC"],
            [
                [
                    rank + 1,
                    _n(own["ranks"][rank]["rate"], 4),
                    *(_n(part["ranks"][rank]["log_loss"], 5) for part in shown.values()),
                    _n(own["ranks"][rank]["auc"]),
                ]
                for rank in ranks
            ],
        ),
        *_leaving(result["leaving"]),
        "## What the data have seen",
        f"{result['known_cells']:.1%} of all {result['cells']:,} pairs of an item and a rank were shown at least "
        f"{result['covered']} times. Of what the test sessions show, {result['covered_cells']:.1%} of the items at "
        f"their ranks and {result['covered_pairs']:.1%} of the pairs of items in a slate were shown as often. "
        f"{result['covered_slates']:.1%} of their slates join no stranger items than 95 % of other held-out slates do.",
    ]
    return "\n\n".join(sections) + "\n"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw calibration curves, log-loss by rank and click rates by rank into one PNG.

    Raises:
        UserError: the file cannot be written.
    """
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    calibration, loss, rate = figure.subplots(1, 3)
    own, others = result["quality"], result["baselines"]
    numbers = range(1, len(own["ranks"]) + 1)
    highest = 0.0
    for number, rank in zip(numbers, own["ranks"], strict=True):
        points = [(group["predicted"], group["rate"]) for group in rank["calibration"]]
        colour = colormaps["viridis"](number / len(own["ranks"]))
        calibration.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=f"rank {number}")
        highest = max(highest, *map(max, points))
    calibration.plot([0, highest], [0, highest], color="gray", linestyle="--", linewidth=1)
    calibration.set(xlabel="predicted click rate", ylabel="click rate", title="Calibration, ten groups of each rank")
    for name, part in {OWN: own, **{BASELINES[key]: other for key, other in others.items()}}.items():
        style: dict[str, Any] = {"linewidth": 2} if name == OWN else {"linewidth": 1, "linestyle": "--"}
        values = [rank["log_loss"] for rank in part["ranks"]]
        loss.plot(numbers, values, marker="o", markersize=3, label=name, **style)
    loss.set(xlabel="rank", ylabel="log-loss (nats)", title="Log-loss by rank")
    predicted = [
        sum(group["predicted"] * group["impressions"] for group in rank["calibration"])
        / sum(group["impressions"] for group in rank["calibration"])
        for rank in own["ranks"]
    ]
    rate.plot(numbers, [rank["rate"] for rank in own["ranks"]], marker="o", markersize=4, label="data")
    rate.plot(numbers, predicted, marker="x", linestyle="--", label=OWN)
    rate.set(xlabel="rank", ylabel="clicks per impression", title="Click rate by rank")
    rate.set_ylim(bottom=0)
    for axis in (loss, rate):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate.yaxis.set_major_formatter(PercentFormatter(1))
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, frameon=False)
    figure.suptitle(f"User model of {result['dataset']} on {result['env']}", fontsize=13)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")


def _leaving(leaving: Mapping[str, Any] | None) -> list[str]:
    if leaving is None:
        return []
    return [
        "## Leaving",
        f"Users leave after {leaving['rate']:.1%} of the turns. Log-loss {_n(leaving['log_loss'], 5)} (by this rate "
        f"alone {_n(leaving['baseline'], 5)}), AUC {_n(leaving['auc'])}.",
    ]


def _table(headers: list[str], rows: list[list[Any]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _n(value: float | None, digits: int = 3) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"
