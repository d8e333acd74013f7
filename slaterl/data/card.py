"""The dataset card: what is in an offline dataset, how good it is, and whether its environment is too easy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from tabulate import tabulate
from torch import Tensor

from slaterl.data.score import normalised
from slaterl.data.trajectories import Trajectories
from slaterl.runs.files import whole_file

ANCHORS = {
    "random": "random slates",
    "constant_slate": "constant slate, decode(0)",
    "short_term_oracle": "short-term oracle",
    "expert": "expert",
}
TOO_EASY = 90.0  # normalised score of the constant slate
MAX_BINS = 40  # of the histogram
STRETCHES = 10  # of an episode, in the Markdown


def describe(
    data: Trajectories, behaviours: Sequence[Mapping[str, Any]], *, num_items: int, anchors: Mapping[str, float | None]
) -> dict[str, Any]:
    """All that the card says, in plain values. Frame 0 is left out: its slates are no behaviour's.

    Returns are clicks per trajectory, shares and rates lie in 0..1, scores are 100 * (return - random) / (expert -
    random). What is said of all trajectories is said of each behaviour's, too, under "behaviours".

    Args:
        behaviours: name and other plain values (noise, epsilon, ...) of each that data.policy_id counts.
        anchors: mean returns of ANCHORS in the data's environment; None where not known.
    """
    slates, clicks, rewards = data.slates[:, 1:], data.clicks[:, 1:], data.rewards
    known = {name: anchors.get(name) for name in ANCHORS}
    edges = _edges(data.returns)

    def part(chosen: Tensor | slice) -> dict[str, Any]:
        found = _part(slates[chosen], clicks[chosen], rewards[chosen], num_items, edges)
        return found | {"normalised_score": _score(found["returns"]["mean"], known)}

    whole = part(slice(None))
    ids = torch.zeros(len(data), dtype=torch.int16) if data.policy_id is None else data.policy_id
    parts, warnings = [], []
    for index in range(max(len(behaviours), int(ids.max()) + 1)):
        # an imported file may count more policies than it says anything of
        behaviour = behaviours[index] if index < len(behaviours) else {"name": f"policy {index}"}
        chosen = ids == index
        if chosen.any():
            parts.append({**behaviour, **(whole if chosen.all() else part(chosen))})
        else:
            warnings.append(f"{behaviour['name']} has no trajectories.")
    card = whole | {
        "turns": slates.shape[1],
        "slate_size": slates.shape[2],
        "num_items": num_items,
        "histogram_edges": edges,
        "behaviours": parts,
        "anchors": {name: {"return": value, "normalised_score": _score(value, known)} for name, value in known.items()},
    }
    return card | {"warnings": _warnings(card) + warnings}


def as_markdown(card: Mapping[str, Any], picture: str | None = "card.png") -> str:
    """The card as the README of its dataset, headed by card["title"].

    Args:
        picture: the name of the file that `draw` wrote, relative to the README.
    """
    parts, returns, score = card["behaviours"], card["returns"], card["normalised_score"]
    shown = [card, *parts] if len(parts) > 1 else parts
    names = [_label(part) if "name" in part else "all" for part in shown]

    def compare(tell: Callable[[Mapping[str, Any]], dict[str, str]]) -> str:
        """A row for each measure, a column for all and one for each behaviour."""
        told = [tell(part) for part in shown]
        return _table(["", *names], [[measure, *(each[measure] for each in told)] for measure in told[0]])

    makers = ", ".join(f"{_label(part)} ({part['trajectories']:,})" for part in parts)
    settings = list(dict.fromkeys(key for part in parts for key in part if key not in card))
    reached = [(ANCHORS[name], *anchor.values()) for name, anchor in card["anchors"].items()]
    reached.append(("**mean of these data**", returns["mean"], score))
    reached.sort(key=lambda row: (row[1] is None, row[1]))
    sections = [
        f"# {card.get('title', 'Offline dataset')}",
        f"{card['trajectories']:,} trajectories of {card['turns']:,} turns by {makers}; slates of {card['slate_size']} "
        f"out of {card['num_items']:,} items.",
        f"Return (clicks of a trajectory): mean {returns['mean']:.1f}, standard deviation {returns['std']:.1f}, "
        f"normalised score {_number(score)} (0: random slates, 100: the expert).",
        "\n".join(f"- **Warning:** {warning}" for warning in card["warnings"]),
        f"![Returns, click rates, items and clicks per turn]({picture})" if picture else "",
        "## Beside others in the same environment",
        _table(["", "mean return", "normalised score"], [(who, _number(a), _number(b)) for who, a, b in reached]),
        "## Returns",
        compare(_told_of_returns),
        "## Slates and items",
        compare(_told_of_items),
        "## Clicks per shown item, by rank",
        compare(lambda part: {f"rank {i}": f"{rate:.4f}" for i, rate in enumerate(part["click_rate_by_rank"], 1)}),
        "## Clicks per turn, by turn",
        compare(_told_of_turns),
        "## Behaviours",
        _table(settings, [[str(part.get(key, "")) for key in settings] for part in parts]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def draw(card: Mapping[str, Any], path: Path) -> None:
    """Returns, click rate by rank, concentration on items, and clicks per turn, as one PNG.

    Raises:
        UserError: the file cannot be written.
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (returns, ranks), (items, turns) = figure.subplots(2, 2)
    parts = card["behaviours"]
    for index, part in enumerate(parts):
        colour = colormaps["tab10" if len(parts) <= 10 else "tab20"](index % 20)
        style: dict[str, Any] = {"color": colour, "linewidth": 1.4}
        counts = part["returns"]["histogram"]
        label = f"{_label(part)}: {part['trajectories']:,} trajectories, mean return {part['returns']['mean']:.1f}"
        returns.stairs(counts, card["histogram_edges"], fill=True, alpha=0.25, color=colour)
        returns.stairs(counts, card["histogram_edges"], label=label, **style)
        ranks.plot(range(1, card["slate_size"] + 1), part["click_rate_by_rank"], marker="o", markersize=3, **style)
        items.plot(part["items"]["most_shown"], part["items"]["share"], **style)
        turns.plot(range(1, card["turns"] + 1), part["clicks_per_turn"], **style)
    even = card["items"]["most_shown"]
    items.plot(even, [rank / card["num_items"] for rank in even], color="gray", linestyle="--", linewidth=1)
    _draw_anchors(returns, card["anchors"])
    returns.set(xlabel="return (clicks of a trajectory)", ylabel="trajectories", title="Returns")
    ranks.set(xlabel="rank", ylabel="clicks per shown item", title="Click rate by rank")
    items.set(xlabel="items, most shown first", ylabel="share of impressions", xscale="log", ylim=(0, 1.03))
    items.set_title("Concentration on items (dashed: all equally often)")
    turns.set(xlabel="turn", ylabel="clicks", title="Clicks per turn, mean")
    for axis in (ranks, turns):
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (ranks, items):
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.suptitle(card.get("title", "Offline dataset"), fontsize=13)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")


def _edges(returns: Tensor) -> list[float]:
    """Edges of the histogram, halfway between whole numbers, so that no return lies on one."""
    low, high = math.floor(returns.min()), math.ceil(returns.max())
    width = -(-(high - low + 1) // MAX_BINS)
    return [edge - 0.5 for edge in range(low, high + 1 + width, width)]


def _part(slates: Tensor, clicks: Tensor, rewards: Tensor, num_items: int, edges: Sequence[float]) -> dict[str, Any]:
    """Describe trajectories by their slates and clicks [N, H, S], without frame 0, and their rewards [N, H]."""
    returns = rewards.sum(1).double()
    quartiles = returns.quantile(torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)).tolist()
    return {
        "trajectories": len(slates),
        "returns": {
            "mean": returns.mean().item(),
            "std": returns.std().item() if len(returns) > 1 else 0.0,
            **dict(zip(("min", "q25", "median", "q75", "max"), quartiles, strict=True)),
            "histogram": np.histogram(returns.numpy(), edges)[0].tolist(),
        },
        "slates": _variety(slates),
        "items": _concentration(slates, num_items),
        "click_rate_by_rank": [column.double().mean().item() for column in clicks.unbind(2)],
        "clicks_per_turn": clicks.sum(2, dtype=torch.float32).mean(0, dtype=torch.float64).tolist(),
    }


def _variety(slates: Tensor) -> dict[str, float]:
    """Shares of the N * H slates: of different ones, where order counts, and of those that repeat an item."""
    # a polynomial of the items modulo 2^64 stands for a slate: two of a million agree once in 30 million datasets
    key = torch.zeros(slates.shape[:2], dtype=torch.int64)
    for column in slates.unbind(2):
        key = key * 6364136223846793005 + column
    ordered = slates.sort(2).values
    repeats = (ordered[..., 1:] == ordered[..., :-1]).any(2)
    return {"distinct": key.unique().numel() / key.numel(), "with_repeats": repeats.sum().item() / key.numel()}


def _concentration(slates: Tensor, num_items: int) -> dict[str, Any]:
    """How the impressions spread over the catalogue; `share[i]` of them are of the `most_shown[i]` most shown items."""
    counts = slates.reshape(-1).bincount(minlength=num_items).sort(descending=True).values
    total = counts.cumsum(0)
    share = total.double() / total[-1]
    most = np.unique(np.geomspace(1, num_items, 60).round().astype(int))
    shown = int((counts > 0).sum())
    return {
        "shown": shown,
        "coverage": shown / num_items,
        "half_of_impressions": int((2 * total < total[-1]).sum()) + 1,
        "gini": (2 * share.sum().item() - 1) / num_items - 1,  # twice the area above the diagonal
        "top_1_percent": share[max(1, num_items // 100) - 1].item(),
        "top_10": share[min(10, num_items) - 1].item(),
        "most_shown": most.tolist(),
        "share": share[most - 1].tolist(),
    }


def _score(value: float | None, anchors: Mapping[str, float | None]) -> float | None:
    return normalised(value, anchors["random"], anchors["expert"])


def _warnings(card: Mapping[str, Any]) -> list[str]:
    """What to know before training on these data, in sentences."""
    random, constant, oracle, expert = (card["anchors"][name]["return"] for name in ANCHORS)
    score, mean = card["anchors"]["constant_slate"]["normalised_score"], card["returns"]["mean"]
    found = []
    if score is not None and score >= TOO_EASY:
        reached = f"returns {constant:.1f}, the expert {expert:.1f} (normalised score {score:.0f})"
        found.append(f"Too easy: one constant slate {reached}.")
    if random is None or expert is None:
        missing = [who for who, value in (("random slates", random), ("an expert", expert)) if value is None]
        found.append(f"No normalised scores: the return of {' and '.join(missing)} is not known.")
    elif expert <= random:
        found.append(f"No normalised scores: the expert returns {expert:.1f}, random slates {random:.1f}.")
    elif oracle is not None and oracle > expert:
        found.append(f"The expert returns {expert:.1f}, less than the short-term oracle with {oracle:.1f}.")
    if random is not None and mean < random:
        found.append(f"The data return {mean:.1f}, less than random slates with {random:.1f}.")
    for part in card["behaviours"]:
        if part["items"]["shown"] < 2 * card["slate_size"]:
            few = f"shows {part['items']['shown']} different items, on slates of {card['slate_size']}"
            found.append(f"{_label(part)} {few}: next to no variety to learn from.")
    return found


def _label(behaviour: Mapping[str, Any]) -> str:
    """A behaviour's name with its disturbances."""
    disturbed = ["sampled"] if behaviour.get("sample") else []
    disturbed += [f"{name} {behaviour[name]:g}" for name in ("noise", "epsilon") if behaviour.get(name)]
    return behaviour["name"] + (f" ({', '.join(disturbed)})" if disturbed else "")


def _told_of_returns(part: Mapping[str, Any]) -> dict[str, str]:
    told = {name: _number(value) for name, value in part["returns"].items() if name != "histogram"}
    told["normalised score of the mean"] = _number(part["normalised_score"])
    return {"trajectories": f"{part['trajectories']:,}", **told}


def _told_of_items(part: Mapping[str, Any]) -> dict[str, str]:
    items, slates = part["items"], part["slates"]
    return {
        "items shown at least once": f"{items['shown']:,}",
        "share of the catalogue shown": f"{items['coverage']:.1%}",
        "items that make up half of all impressions": f"{items['half_of_impressions']:,}",
        "impressions of the 10 most shown items": f"{items['top_10']:.1%}",
        "impressions of the most shown 1 % of the catalogue": f"{items['top_1_percent']:.1%}",
        "Gini coefficient of impressions (0: even)": f"{items['gini']:.3f}",
        "different slates among all slates": f"{slates['distinct']:.1%}",
        "slates that repeat an item": f"{slates['with_repeats']:.1%}",
    }


def _told_of_turns(part: Mapping[str, Any]) -> dict[str, str]:
    """Means over a few stretches of the episode."""
    clicks = part["clicks_per_turn"]
    bounds = np.unique(np.linspace(0, len(clicks), STRETCHES + 1).round().astype(int)).tolist()
    return {
        f"turns {a + 1} to {b}" if b > a + 1 else f"turn {b}": f"{np.mean(clicks[a:b]):.3f}"
        for a, b in itertools.pairwise(bounds)
    }


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1f}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _draw_anchors(axis: Axes, anchors: Mapping[str, Mapping[str, float | None]]) -> None:
    """A vertical line each, up to its label; the labels are one below the other, above the bars."""
    step = 0.075  # the height of a label, in heights of the axis
    known = [(anchor["return"], name) for name, anchor in anchors.items() if anchor["return"] is not None]
    axis.scatter([value for value, _ in known], [0] * len(known), marker="none")  # widens the axis to all of them
    middle = sum(axis.get_xlim()) / 2
    # labels point inwards; the lines that one points at end below it
    known = sorted(one for one in known if one[0] <= middle) + sorted(one for one in known if one[0] > middle)[::-1]
    axis.set_ylim(0, axis.get_ylim()[1] / (1 - step * len(known)))
    for row, (value, name) in enumerate(known):
        height, score = 1 - step * (row + 0.5), anchors[name]["normalised_score"]
        axis.axvline(value, ymax=height + step / 3, color="black", linestyle="--", linewidth=1)
        text = f" {ANCHORS[name]} {value:.1f}" + ("" if score is None else f" (score {score:.0f})") + " "
        side = "left" if value <= middle else "right"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0}
        axis.text(value, height, text, transform=axis.get_xaxis_transform(), ha=side, va="center", fontsize=8, bbox=box)
