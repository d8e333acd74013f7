"""Show the jobs of a sweep as a table: live while they run, or once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.live import Live
from rich.table import Table

from slaterl.console import console, note
from slaterl.sweeps.records import Job, jobs

_STYLES = {"running": "cyan", "finished": "green", "interrupted": "yellow", "pruned": "yellow"}
_STYLES |= dict.fromkeys(("failed", "killed", "damaged"), "red")
_FRAME_LINES = 5  # title, header and borders of the table


class Watch:
    """Show a running sweep: a live table below all other output in a terminal, one line per start and end in a log."""

    def __init__(self, sweep: Path, numbers: Sequence[int]) -> None:
        self.sweep, self.numbers = sweep, set(numbers)
        self.states: dict[int, str] = {}
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Watch:
        if self.live:
            self.live.start()
        self.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refresh(whole=True)
        if self.live:
            self.live.stop()

    def refresh(self, whole: bool = False) -> None:
        """Read the records and show them. `whole` shows all jobs, even if the terminal has too few lines."""
        found = [job for job in jobs(self.sweep) if job.number in self.numbers]
        labels = label_jobs(found)
        for job in found:
            if self.states.get(job.number) != job.state and job.state != "waiting":
                if not self.live or job.state not in ("running", "finished"):
                    note(describe(job, labels[job.number]))
                self.states[job.number] = job.state
        if self.live:
            rows = None if whole else max(1, console.height - _FRAME_LINES)
            self.live.update(jobs_table(found, rows), refresh=True)


def jobs_table(found: Sequence[Job], rows: int | None = None) -> Table:
    """Build a table with one row per job: its slot, stage, progress, speed and remaining time.

    Args:
        rows: most jobs to show; running jobs come first, finished jobs last.
    """
    states = [job.state for job in found]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    table = Table(title=f"{len(found)} jobs: {counts}", title_justify="left")
    table.add_column("job")
    table.add_column("", overflow="fold")
    for name in ("state", "slot", "stage"):
        table.add_column(name, no_wrap=name == "state")
    for name in ("step", "steps/s", "val", "left"):
        table.add_column(name, justify="right")
    labels = label_jobs(found)
    for job in _most_telling(found, len(found) if rows is None else rows):
        row = _progress(job.record) if job.state != "waiting" else [""] * 5
        where = job.record.get("slot", job.record.get("host", ""))
        table.add_row(str(job.number), labels[job.number], job.state, where, *row, style=_STYLES.get(job.state))
    return table


def _most_telling(found: Sequence[Job], count: int) -> list[Job]:
    """Choose the jobs to show, and keep their order."""
    ranks = {"running": 0, "waiting": 2, "pruned": 3, "finished": 3}
    chosen = sorted(found, key=lambda job: ranks.get(job.state, 1))[:count]  # sorted keeps the order of equals
    return sorted(chosen, key=lambda job: job.number)


def label_jobs(found: Sequence[Job]) -> dict[int, str]:
    """Label each job with the overrides that differ between jobs."""
    overrides = {job.number: job.record.get("overrides", []) for job in found}
    known = [set(own) for own in overrides.values() if own]  # a damaged record has none
    common = set.intersection(*known) if len(known) > 1 else set()
    return {number: " ".join(entry for entry in own if entry not in common) for number, own in overrides.items()}


def describe(job: Job, label: str) -> str:
    """Describe a job in one line: number, label, state and reason."""
    return f"job {job.number}{f' ({label})' if label else ''} {job.state}{f': {job.reason}' if job.reason else ''}"


def _progress(record: dict[str, Any]) -> list[str]:
    """Fill the columns stage, step, steps/s, val and left."""
    done, total, speed, score = (record.get(name) for name in ("done", "total", "speed", "score"))
    left = (total - done) / speed / 60 if record["status"] == "running" and total and speed else None  # minutes
    return [
        record.get("title", ""),
        f"{done:,} / {total:,}" if total else "",
        "" if left is None else f"{speed:,.1f}",
        "" if score is None else f"{score:.4g}",
        "" if left is None else f"{left:,.1f} min",
    ]
