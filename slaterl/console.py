"""Messages, progress bars and tables. All go to stderr, because the last line on stdout is the run's folder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

console = Console(stderr=True, highlight=False)
_listeners: list[Callable[[dict[str, Any]], None]] = []


class Show(Protocol):
    """Show that `done` of a total are done.

    Args:
        score: the score of the last validation.
        total: a new total, if the work ends early.
    """

    def __call__(self, done: int, *, score: float | None = None, total: int | None = None) -> None: ...


@contextlib.contextmanager
def listening(listener: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Within the block, pass all facts of `tell` to the listener. A sweep follows its jobs this way."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(**facts: Any) -> None:
    """Send new facts about the run to all listeners: its folder; title, done, total and unit; score and its name."""
    for listener in _listeners:
        listener(facts)


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {self.unit}/s", style="cyan")


@contextlib.contextmanager
def progress(title: str, total: int, unit: str, start: int = 0) -> Iterator[Show]:
    """Show a bar with speed and remaining time. Yields `show(done)`.

    Args:
        unit: what is counted, in the plural ("steps").
        start: how much a resumed run has already done.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(unit),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, speed_estimate_period=60) as bar:
        task = bar.add_task(title, total=total, completed=start)
        tell(title=title, done=start, total=total, unit=unit, speed=None, score=None)

        def show(done: int, *, score: float | None = None, total: int | None = None) -> None:
            bar.update(task, completed=done, total=total)
            known = {key: value for key, value in {"score": score, "total": total}.items() if value is not None}
            tell(done=done, speed=bar.tasks[0].speed, **known)

        yield show


def note(message: str) -> None:
    """Print one line."""
    console.print(message, markup=False, soft_wrap=True)  # so that a path can be copied in one piece


def with_interval(mean: float, interval: float | None) -> str:
    """Write a mean and the half-width of its interval, which is None if it is unknown.

    See `decimals_of` for the number of digits.
    """
    decimals = decimals_of(mean, interval)
    return " ± ".join(f"{value:.{decimals}f}" for value in (mean, interval) if value is not None)


def decimals_of(mean: float, interval: float | None) -> int:
    """Return the number of decimals that a return and its interval are written with.

    One is enough for returns of simulated users. Clicks of a log can be 0.03 a session, and get as many as the smaller
    of both numbers needs for two digits.
    """
    known = [abs(mean)] if interval is None or math.isnan(interval) else [abs(mean), interval]
    small = min((value for value in known if value > 0), default=1.0)
    return 1 if small >= (1 if interval is None else 0.1) else min(8, 1 - math.floor(math.log10(small)))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. The first column is aligned left, all others right."""
    shown = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        # the first column stays readable in a narrow terminal
        shown.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0, min_width=None if i else 12)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
