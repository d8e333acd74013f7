"""The training curves of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from slaterl.runs.files import whole_file
from slaterl.training import metrics


def plot_curves(path: Path, csv: Path, columns: Sequence[str]) -> None:
    """Draw one panel per column of a metrics.csv over steps, as PNG. Columns without values are left out."""
    curves = [(name, *metrics.curve(csv, name)) for name in columns]
    curves = [curve for curve in curves if curve[1]]
    rows = -(-len(curves) // 3)
    figure = Figure(figsize=(12, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, min(3, len(curves)), squeeze=False).flatten()
    for axis, (name, steps, values) in zip(axes, curves, strict=False):
        axis.plot(steps, values, marker="o" if len(steps) < 30 else None, markersize=3, linewidth=1.2)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
