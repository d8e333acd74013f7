"""Figures of a report: each function draws one from data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from slaterl.report.episodes import Episodes, TopicEpisodes
from slaterl.report.statistics import half_width
from slaterl.training import metrics

WIDTH = 9.0  # inches


def learning_curves(runs: pd.DataFrame) -> Figure:
    """Draw validation return over steps: the mean over a method's seeds, with its 95 % interval as a band."""
    colours = _colours(runs["method"])

    def draw(axis: Axes, env: str) -> None:
        for method, group in runs[runs["env"] == env].groupby("method"):
            colour = colours[str(method)]
            curves = [pd.Series(dict(zip(*_curve(path), strict=True))) for path in group["path"]]
            curves = [curve for curve in curves if len(curve)]
            if not curves:  # methods that do not learn get a horizontal line
                axis.axhline(group["test"].mean(), label=method, linestyle=":", color=colour)
                continue
            table = pd.concat(curves, axis=1).dropna()  # steps that all seeds have reached
            middle = table.mean(axis=1).to_numpy()
            axis.plot(table.index, middle, label=method, color=colour, linewidth=1.4)
            if len(curves) > 1:
                band = np.array([half_width(row) for row in table.to_numpy()])
                axis.fill_between(table.index, middle - band, middle + band, alpha=0.2, color=colour)
        axis.set_title(env)
        axis.set_xlabel("step")
        axis.set_ylabel("validation return")
        axis.set_ylim(bottom=0)

    return _with_legend(_panels(sorted(runs["env"].unique()), draw))


def score_density(episodes: Mapping[str, TopicEpisodes]) -> Figure:
    """Draw scores of recommended items by the number of bored topics, with the threshold of relevance (Figure 2)."""

    def draw(axis: Axes, method: str) -> None:
        found = episodes[method]
        bored = np.where(found.present, found.bored.sum(2), -1)  # [U, H]; -1 after a user left
        grid = np.linspace(found.scores.min() - 0.02, found.scores.max() + 0.02, 300)
        for count in np.unique(bored[found.present]):
            values = found.scores[bored == count].ravel()
            if len(values) >= 100 and np.ptp(values) > 0:
                share = (bored == count).sum() / found.present.sum()
                axis.plot(grid, gaussian_kde(values)(grid), label=f"{count} ({share:.0%} of turns)", linewidth=1.4)
        axis.axvline(found.threshold, color="black", linestyle="--", linewidth=1)
        axis.set_title(method)
        axis.set_xlabel("score of recommended items (dashed: relevance 1/2)")
        axis.set_ylabel("density")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(title="bored topics", fontsize=7, title_fontsize=7)

    return _panels(list(episodes), draw)


def return_per_turn(episodes: Mapping[str, Episodes], methods: Iterable[str] = ()) -> Figure:
    """Draw the reward in each turn of the episode, mean over the users who are present with its 95 % interval.

    Args:
        methods: all methods of the report, so that the colours match the learning curves.
    """
    colours = _colours([*episodes, *methods])
    figure = _figure(3.4)
    axis = figure.subplots()
    for method, found in episodes.items():
        # [U, H] without the turns in which everybody had left
        present = found.present[:, found.present.any(0)]
        rewards = [column[there] for column, there in zip(found.rewards.T, present.T, strict=False)]  # of each turn
        turns = np.arange(1, len(rewards) + 1)
        middle = np.array([column.mean() for column in rewards])
        axis.plot(turns, middle, label=method, color=colours[method], linewidth=1.4)
        if len(present) > 1:
            band = np.array([half_width(column) if len(column) > 1 else np.nan for column in rewards])
            axis.fill_between(turns, middle - band, middle + band, alpha=0.2, color=colours[method])
    axis.set_xlabel("turn")
    axis.set_ylabel("reward")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _with_legend(figure)


def slate_heat_map(episodes: Mapping[str, TopicEpisodes], user: int = 0) -> Figure:
    """Draw one user's episode: items of each topic on the slates, clicks as dots, bored topics hatched."""

    def draw(axis: Axes, method: str) -> None:
        found = episodes[method]
        there = found.present[user]
        topics, bored = found.topics[user][there], found.bored[user][there]  # [turns, S], [turns, K]
        turns, number = bored.shape
        counts = np.stack([(topics == topic).sum(1) for topic in range(number)])  # [K, H]
        image = axis.imshow(
            counts,
            aspect="auto",
            cmap="Blues",
            vmin=0,
            vmax=topics.shape[1],
            interpolation="nearest",
            extent=_from_turn_1(counts),
        )
        for topic, turn in zip(*np.nonzero(bored.T), strict=True):
            axis.add_patch(_box(turn + 1, topic))
        turn, slot = np.nonzero(found.clicks[user])
        axis.scatter(turn + 1, topics[turn, slot], s=7, color="tab:orange", label="click", zorder=3)
        axis.set_title(f"{method}: topics shown (blue), clicks (dots), bored (hatched)", fontsize=9)
        axis.set_xlabel("turn")
        axis.set_ylabel("topic")
        axis.set_xlim(0.5, turns + 0.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_yticks(range(number))
        axis.figure.colorbar(image, ax=axis, label="items on the slate", pad=0.01)

    return _panels(list(episodes), draw, columns=1, height=2.6)


def slate_ranks(episodes: Mapping[str, TopicEpisodes], user: int = 0) -> Figure:
    """Draw one user's episode: the topic at each rank in each turn."""

    def draw(axis: Axes, method: str) -> None:
        found = episodes[method]
        number = found.bored.shape[2]
        ranks = found.topics[user][found.present[user]].T  # [S, turns]
        image = axis.imshow(
            ranks,
            aspect="auto",
            cmap="tab20",
            vmin=-0.5,
            vmax=19.5,
            interpolation="nearest",
            extent=_from_turn_1(ranks),
        )
        turn, slot = np.nonzero(found.clicks[user])
        axis.scatter(turn + 1, slot, s=6, color="black", zorder=3)
        axis.set_title(f"{method}: topic at each rank, clicks as dots", fontsize=9)
        axis.set_xlabel("turn")
        axis.set_ylabel("rank")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        bar = axis.figure.colorbar(image, ax=axis, label="topic", pad=0.01, ticks=range(min(number, 20)))
        bar.ax.set_ylim(-0.5, min(number, 20) - 0.5)

    return _panels(list(episodes), draw, columns=1, height=2.6)


def lambda_grid(grid: pd.DataFrame) -> Figure:
    """Draw mean test return by the weights of GeMS (Figure 3). Columns: env, method, lambda_KL, lambda_click, test."""
    groups = {f"{env}: {method}": group for (env, method), group in grid.groupby(["env", "method"])}

    def draw(axis: Axes, name: str) -> None:
        table = groups[name].pivot_table("test", "lambda_click", "lambda_KL")
        image = axis.imshow(table, cmap="viridis", origin="lower", aspect="auto")
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            if not np.isnan(value):
                shade = float(np.asarray(image.norm(value)))
                ink = "black" if shade > 0.6 else "white"  # the best cells are bright
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=9)
        axis.set_xticks(range(len(table.columns)), [f"{value:g}" for value in table.columns])
        axis.set_yticks(range(len(table.index)), [f"{value:g}" for value in table.index])
        axis.set_xlabel("lambda_KL")
        axis.set_ylabel("lambda_click")
        axis.set_title(name, fontsize=9)
        axis.figure.colorbar(image, ax=axis, label="test return")

    return _panels(list(groups), draw)


def _curve(path: object) -> tuple[list[int], list[float]]:
    file = path / "metrics.csv"  # type: ignore[operator]
    return metrics.curve(file, "val/return") if file.is_file() else ([], [])


def _colours(methods: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Choose a colour for each method, the same in all figures of the same methods."""
    names = sorted(set(methods))
    return {name: colormaps["tab10" if len(names) <= 10 else "tab20"](i % 20) for i, name in enumerate(names)}


def _with_legend(figure: Figure) -> Figure:
    """Add one legend for all panels, below them."""
    labelled = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes]
    entries = {label: handle for axis in labelled for handle, label in axis}
    columns = 3 if max(map(len, entries)) < 30 else 2
    rows = -(-len(entries) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize=7, frameon=False
    )
    return figure


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panels(names: Sequence[str], draw: Callable[[Axes, str], None], columns: int = 2, height: float = 3.4) -> Figure:
    """Draw one panel for each name."""
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(height * rows)
    axes: NDArray[np.object_] = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        draw(axis, name)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    return figure


def _from_turn_1(rows: NDArray[np.int64]) -> tuple[float, float, float, float]:
    """Return the extent of an image [rows, turns] whose first turn is 1, as in the other pictures."""
    return 0.5, rows.shape[1] + 0.5, len(rows) - 0.5, -0.5


def _box(turn: int, topic: int) -> Rectangle:
    return Rectangle((turn - 0.5, topic - 0.5), 1, 1, fill=False, hatch="////", edgecolor="gray", linewidth=0)
