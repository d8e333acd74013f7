"""Signals: which end a run, and which only make it save."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import FrameType

Handler = Callable[[int, "FrameType | None"], None]


@contextlib.contextmanager
def handling(*, stop: Handler, save: Handler) -> Iterator[None]:
    """Install the handlers for the block: `stop` for SIGINT and SIGTERM.

    In a SLURM job of submitit's (which handles USR2 there), USR2 announces a preemption or the time limit and is the
    one to stop at; SIGTERM is only a reason to save. SLURM puts a job that it preempts back into the queue if the job
    is still there when its time of grace ends; one that left at the SIGTERM before counts as failed. A job that is
    cancelled or requeued by hand is killed soon after the signal, whatever it does.
    """
    in_slurm = callable(signal.getsignal(signal.SIGUSR2))
    handlers = {signal.SIGINT: stop, signal.SIGTERM: save if in_slurm else stop}
    if in_slurm:
        handlers[signal.SIGUSR2] = stop
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def requeue() -> None:
    """Let submitit's handler of USR2 put this job of SLURM's back into the queue.

    SLURM ends a job as soon as it is told to requeue it, and `scontrol` as one of its processes, often before that can
    say so. If it did fail, SLURM has the job as failed; an exception would be this job's result, and end the watching
    of one that goes on.
    """
    try:
        signal.raise_signal(signal.SIGUSR2)
    except subprocess.SubprocessError as error:
        print(error, file=sys.stderr)
