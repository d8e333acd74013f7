"""Signals: which end a run, and which only make it save."""

from __future__ import annotations

import contextlib
import signal
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
