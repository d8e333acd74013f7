"""Signals in a SLURM job, where submitit has a handler of its own for USR2, and elsewhere."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from slaterl.runs.signals import handling, requeue


@pytest.fixture
def before() -> Iterator[dict[int, object]]:
    """The handlers as they are, put back afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
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


def test_in_a_slurm_job_sigterm_only_saves(before: dict[int, object]) -> None:
    requeued: list[int] = []
    signal.signal(signal.SIGUSR2, lambda n, frame: requeued.append(n))
    assert heard(signal.SIGTERM, signal.SIGUSR2) == [("save", signal.SIGTERM), ("stop", signal.SIGUSR2)]
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
