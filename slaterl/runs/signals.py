"""Signals: which ones end a run, and which ones only make it save."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

Handler = Callable[[int, "FrameType | None"], None]

# sent by a terminal that closes; Windows has none
HANGUP = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()


@contextlib.contextmanager
def handling(*, stop: Handler, save: Handler) -> Iterator[None]:
    """Install handlers for the block: `stop` for SIGINT, SIGTERM and SIGHUP.

    submitit handles USR2 in a SLURM job. There, USR2 announces a preemption or the time limit and calls `stop`, while
    SIGTERM and SIGHUP call `save`. SLURM requeues a preempted job only if the job lives until its grace time ends. A
    job that left at the earlier SIGTERM counts as failed. A job that is cancelled or requeued by hand is killed soon
    after the signal, whatever it does.

    A closed terminal sends SIGHUP twice, by the kernel and by the shell, so the second one is ignored. `nohup`
    makes SIGHUP ignored from the start, and it stays ignored.
    """
    in_slurm = callable(signal.getsignal(signal.SIGUSR2))
    handlers = {signal.SIGINT: stop, signal.SIGTERM: save if in_slurm else stop}
    for number in HANGUP:
        if signal.getsignal(number) != signal.SIG_IGN:
            handlers[number] = save if in_slurm else first_only(stop)
    if in_slurm:
        handlers[signal.SIGUSR2] = stop
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            if number not in HANGUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


def first_only(handler: Handler) -> Handler:
    """Wrap a handler to ignore the signal from its first arrival on."""

    def handle(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_IGN)
        handler(signum, frame)

    return handle


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold back SIGINT, SIGTERM and SIGHUP until the block ends, so that a file is written whole.

    A signal mask is not enough: it holds for one thread, and the process has others. Handlers are set and run in the
    main thread only, so other threads need no protection.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM, *HANGUP) if callable(signal.getsignal(number))]
    before = {number: signal.signal(number, lambda signum, frame: arrived.append(signum)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)


def requeue() -> None:
    """Let submitit's handler of USR2 put this SLURM job back into the queue.

    SLURM ends a job as soon as it requeues it, and `scontrol` with it, often before `scontrol` can report success. If
    requeueing fails, SLURM marks the job as failed. An exception here would become the job's result, and the launcher
    would stop watching a job that continues.
    """
    try:
        signal.raise_signal(signal.SIGUSR2)
    except subprocess.SubprocessError as error:
        print(error, file=sys.stderr)
