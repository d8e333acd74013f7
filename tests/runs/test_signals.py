"""Signals in a SLURM job, where submitit has a handler of its own for USR2, and elsewhere."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from slaterl.runs.signals import deferred, handling, requeue


@pytest.fixture
def before() -> Iterator[dict[int, object]]:
    """The handlers as they are, put back afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield handlers
    for number, handler in handlers.items():
        signal.signal(number, handler)


def heard(*numbers: int) -> list[tuple[str, int]]:
    """What is called when these signals arrive in a block."""
    calls: list[tuple[str, int]] = []
    with handling(stop=lambda n, frame: calls.append(("stop", n)), save=lambda n, frame: calls.append(("save", n))):
        for number in numbers:
            signal.raise_signal(number)
    return calls


def test_sigint_and_sigterm_stop(before: dict[int, object]) -> None:
    assert heard(signal.SIGINT, signal.SIGTERM) == [("stop", signal.SIGINT), ("stop", signal.SIGTERM)]
    assert {number: signal.getsignal(number) for number in before} == before


def test_closed_terminal_stops_once(before: dict[int, object]) -> None:
    """The kernel and the shell both send SIGHUP. The second must not be taken for an impatient one, also later."""
    assert heard(signal.SIGHUP, signal.SIGHUP) == [("stop", signal.SIGHUP)]
    signal.raise_signal(signal.SIGHUP)  # while the run ends
    assert heard(signal.SIGHUP) == []


def test_no_hangup_leaves_the_handler(before: dict[int, object]) -> None:
    heard(signal.SIGTERM)
    assert signal.getsignal(signal.SIGHUP) == before[signal.SIGHUP]


def test_nohup_stays(before: dict[int, object]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert heard(signal.SIGHUP) == []
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_deferred_signals_arrive_afterwards(before: dict[int, object]) -> None:
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    calls: list[tuple[str, int]] = []
    with handling(stop=lambda n, frame: calls.append(("stop", n)), save=lambda n, frame: None):
        with deferred():
            for number in numbers:
                signal.raise_signal(number)
            assert calls == []
        assert calls == [("stop", number) for number in numbers]


def test_deferred_keeps_what_is_ignored(before: dict[int, object]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with deferred():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_in_a_slurm_job_sigterm_only_saves(before: dict[int, object]) -> None:
    requeued: list[int] = []
    signal.signal(signal.SIGUSR2, lambda n, frame: requeued.append(n))
    assert heard(signal.SIGTERM, signal.SIGUSR2) == [("save", signal.SIGTERM), ("stop", signal.SIGUSR2)]
    assert heard(signal.SIGHUP) == [("save", signal.SIGHUP)]
    assert requeued == []
    signal.raise_signal(signal.SIGUSR2)  # after the block it is submitit's again
    assert requeued == [signal.SIGUSR2]


def test_scontrol_that_dies_with_the_job_is_no_result(before: dict[int, object]) -> None:
    def handler(signum: int, frame: object) -> None:
        raise subprocess.CalledProcessError(-signal.SIGTERM, ["scontrol", "requeue", "1_0"])

    signal.signal(signal.SIGUSR2, handler)
    requeue()


def test_a_job_that_is_not_requeued_says_why(before: dict[int, object]) -> None:
    def handler(signum: int, frame: object) -> None:
        raise RuntimeError("timed-out too many times")

    signal.signal(signal.SIGUSR2, handler)
    with pytest.raises(RuntimeError, match="too many times"):
        requeue()
