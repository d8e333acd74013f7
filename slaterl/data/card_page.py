"""The dataset card for readers: a Markdown page and a figure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from tabulate import tabulate

from slaterl.console import with_interval
from slaterl.data.card import ANCHORS, label_of
from slaterl.data.score import half_width
from slaterl.runs.files import whole_file

MEASURES = {
    "mean": "mean",
    "std": "standard deviation",
    "min": "minimum",
    "q25": "25th percentile",
    "median": "median",
    "q75": "75th percentile",
    "max": "maximum",
}
STRETCHES = 10  # parts of an episode in the table of clicks per turn


def as_markdown(card: Mapping[str, Any], picture: str | None = "card.png") -> str:
    """Write the card as Markdown text under the title card["title"].

    Args:
        card: the result of `describe`.
        picture: path of the figure written by `draw`, relative to the page; None leaves it out.
    """
    parts, returns, score = card["behaviours"], card["returns"], card.get("normalised_score")
    shown = [card, *parts] if len(parts) > 1 else parts
    names = [label_of(part) if "name" in part else "all" for part in shown]

    def compare(measures_of: Callable[[Mapping[str, Any]], dict[str, str]]) -> str:
        """Return a table with one row per measure, and one column for all data and for each behaviour."""
        columns = [measures_of(part) for part in shown]
        return _table(["", *names], [[measure, *(column[measure] for column in columns)] for measure in columns[0]])

    makers = ", ".join(f"{label_of(part)} ({part['trajectories']:,})" for part in parts)
    settings = list(dict.fromkeys(key for part in parts for key in part if key not in card))
    reached = [(ANCHORS[name], *anchor.values()) for name, anchor in card["anchors"].items()]
    frequent = card["anchors"].get("most_frequent_slate", {"return": None})["return"]
    reached.append(("**this dataset**", returns["mean"], score))
    reached.sort(key=lambda row: (row[1] is None, row[1]))
    compared = _table(["", "mean return", "normalised score"], [(who, _number(a), _number(b)) for who, a, b in reached])
    interval = returns["interval"] if "interval" in returns else half_width(returns["std"], card["trajectories"])
    mean = with_interval(returns["mean"], interval)
    scored = f", normalised score {_number(score)} (random slates: 0, expert: 100)" if card["anchors"] else ""
    sections = [
        f"# {card.get('title', 'Offline dataset')}",
        f"{card['trajectories']:,} trajectories of {_turns(card)} by {makers}; slates of {card['slate_size']} "
        f"out of {card['num_items']:,} items.",
        f"Return (clicks per trajectory): mean {mean} (95 %), standard deviation {_number(returns['std'])}{scored}.",
        "\n".join(f"- **Warning:** {warning}" for warning in card["warnings"]),
        f"![Returns, click rates, items and clicks per turn]({picture})" if picture else "",
        *(["## Comparison with reference policies in the same environment", compared] if card["anchors"] else []),
        f"Each slot's most frequent item, shown to all users in all turns, reaches {frequent / returns['mean']:.0%} "
        "of the mean return of the data."
        if frequent is not None and returns["mean"] > 0
        else "",
        "## Returns",
        compare(_measures_of_returns),
        *(["## Turns of a session", compare(_measures_of_lengths)] if "lengths" in card else []),
        "## Slates and items",
        compare(_measures_of_items),
        *(["## Most shown items", _top(card["top_items"])] if "top_items" in card else []),
        "## Click rate by rank",
        compare(lambda part: {f"rank {i}": f"{rate:.4f}" for i, rate in enumerate(part["click_rate_by_rank"], 1)}),
        "## Mean clicks per turn",
        compare(_measures_of_turns),
        "## Behaviours",
        _table(settings, [[str(part.get(key, "")) for key in settings] for part in parts]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def draw(card: Mapping[str, Any], path: Path) -> None:
    """Draw returns, click rate by rank, concentration of impressions and clicks per turn into one PNG.

    Args:
        card: the result of `describe`.
        path: the file to write.

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
        mean = _number(part["returns"]["mean"])
        label = f"{label_of(part)}: {part['trajectories']:,} trajectories, mean return {mean}"
        returns.stairs(counts, card["histogram_edges"], fill=True, alpha=0.25, color=colour)
        returns.stairs(counts, card["histogram_edges"], label=label, **style)
        ranks.plot(range(1, card["slate_size"] + 1), part["click_rate_by_rank"], marker="o", markersize=3, **style)
        items.plot(part["items"]["most_shown"], part["items"]["share"], **style)
        turns.plot(range(1, card["turns"] + 1), np.array(part["clicks_per_turn"], dtype=float), **style)
    even = card["items"]["most_shown"]
    items.plot(even, [rank / card["num_items"] for rank in even], color="gray", linestyle="--", linewidth=1)
    _draw_anchors(returns, card["anchors"])
    returns.set(xlabel="return (clicks per trajectory)", ylabel="trajectories", title="Returns")
    ranks.set(xlabel="rank", ylabel="clicks per impression", title="Click rate by rank")
    items.set(xlabel="number of most shown items", ylabel="share of impressions", xscale="log", ylim=(0, 1.03))
    items.set_title("Concentration of impressions (dashed: uniform)")
    turns.set(xlabel="turn", ylabel="clicks", title="Mean clicks per turn")
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


def _measures_of_returns(part: Mapping[str, Any]) -> dict[str, str]:
    return {
        "trajectories": f"{part['trajectories']:,}",
        **{measure: _number(part["returns"][name]) for name, measure in MEASURES.items()},
        **({"normalised score of the mean": _number(part["normalised_score"])} if "normalised_score" in part else {}),
    }


def _measures_of_lengths(part: Mapping[str, Any]) -> dict[str, str]:
    lengths = part["lengths"]
    named = {measure: _number(lengths[name]) for name, measure in MEASURES.items()}
    return named | {"share of sessions that the log cut": _share(lengths["truncated"])}


def _measures_of_items(part: Mapping[str, Any]) -> dict[str, str]:
    items, slates = part["items"], part["slates"]
    return {
        "items shown at least once": f"{items['shown']:,}",
        "share of the catalogue shown": f"{items['coverage']:.1%}",
        "items that account for half of all impressions": f"{items['half_of_impressions']:,}",
        "share of impressions: 10 most shown items": f"{items['top_10']:.1%}",
        "share of impressions: most shown 1% of the catalogue": f"{items['top_1_percent']:.1%}",
        "Gini coefficient of impressions (0: uniform)": f"{items['gini']:.3f}",
        "distinct slates": f"{slates['count']:,}" if "count" in slates else "unknown",  # cards of older versions
        "share of distinct slates": f"{slates['distinct']:.1%}",
        "effective number of items in a slot": _number(slates.get("items_per_slot")),
        "share of the slates' variance explained by turn and clicks": _share(slates.get("explained_by_history")),
        "share of slates with a repeated item": f"{slates['with_repeats']:.1%}",
    }


def _measures_of_turns(part: Mapping[str, Any]) -> dict[str, str]:
    """Average over a few stretches of the episode, and over the turns there that a session has."""
    clicks = np.array(part["clicks_per_turn"], dtype=float)
    bounds = np.unique(np.linspace(0, len(clicks), STRETCHES + 1).round().astype(int)).tolist()
    return {
        f"turns {a + 1} to {b}" if b > a + 1 else f"turn {b}": _mean(clicks[a:b]) for a, b in itertools.pairwise(bounds)
    }


def _turns(card: Mapping[str, Any]) -> str:
    if "lengths" not in card:
        return f"{card['turns']:,} turns"
    lengths = card["lengths"]
    return f"{lengths['min']:,.0f} to {lengths['max']:,.0f} turns (mean {lengths['mean']:.1f})"


def _mean(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    return f"{known.mean():.3f}" if len(known) else "unknown"


def _number(value: float | None) -> str:
    return "unknown" if value is None else with_interval(value, None)


def _top(items: Sequence[Mapping[str, Any]]) -> str:
    rows = [(str(item["id"]), f"{item['shown']:,}", f"{item['clicked'] / item['shown']:.4f}") for item in items]
    return _table(["item", "impressions", "click rate"], rows)


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _draw_anchors(axis: Axes, anchors: Mapping[str, Mapping[str, float | None]]) -> None:
    """Draw a vertical line up to a label for each known anchor. The labels are stacked above the bars."""
    step = 0.075  # height of a label as a fraction of the axis
    known = [(anchor["return"], name) for name, anchor in anchors.items() if anchor["return"] is not None]
    axis.scatter([value for value, _ in known], [0] * len(known), marker="none")  # widens the axis to show all of them
    middle = sum(axis.get_xlim()) / 2
    # labels extend towards the middle of the axis; lines that a label would cross end below it
    known = sorted(one for one in known if one[0] <= middle) + sorted(one for one in known if one[0] > middle)[::-1]
    axis.set_ylim(0, axis.get_ylim()[1] / (1 - step * len(known)))
    for row, (value, name) in enumerate(known):
        height, score = 1 - step * (row + 0.5), anchors[name]["normalised_score"]
        axis.axvline(value, ymax=height + step / 3, color="black", linestyle="--", linewidth=1)
        text = (
            f" {ANCHORS[name]} {with_interval(value, None)}" + ("" if score is None else f" (score {score:.0f})") + " "
        )
        side = "left" if value <= middle else "right"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0}
        axis.text(value, height, text, transform=axis.get_xaxis_transform(), ha=side, va="center", fontsize=8, bbox=box)
