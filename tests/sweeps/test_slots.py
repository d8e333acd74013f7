"""Slots: which GPU each job sees, and how many threads the libraries beside torch may use."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from slaterl.errors import UserError
from slaterl.sweeps import slots
from slaterl.sweeps.slots import Slot, make_slots, visible_gpus


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")


def seen(made: list[Slot]) -> list[str]:
    return [slot.env["CUDA_VISIBLE_DEVICES"] for slot in made]


def test_one_gpu_for_each_job(cores: None) -> None:
    made = make_slots("auto", 1, None)
    assert seen(made) == ["2", "5"] and made[0].env["OMP_NUM_THREADS"] == "8"
    made = make_slots("auto", 3, None)
    assert sorted(seen(made)) == ["2", "2", "2", "5", "5", "5"] and made[0].env["OMP_NUM_THREADS"] == "2"
    assert seen(made)[:2] == ["2", "5"], "two jobs are spread over two GPUs"
    made = make_slots(1, 1, None)
    assert seen(made) == ["2"] and made[0].env["OMP_NUM_THREADS"] == "16"


def test_cpu_slots_see_no_gpu(cores: None) -> None:
    made = make_slots(0, 1, 5)
    assert seen(made) == [""] * 5
    assert made[0].env["OMP_NUM_THREADS"] == "3"
    assert len({slot.name for slot in made}) == 5
    made = make_slots(0, 1, None)
    assert len(made) == 16 and made[0].env["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(("gpus", "jobs_per_gpu", "cpu_slots"), [(3, 1, None), ("all", 1, 1), (1, 0, 1), (0, 1, 0)])
def test_mistakes_are_named(cores: None, gpus: str | int, jobs_per_gpu: int, cpu_slots: int | None) -> None:
    with pytest.raises(UserError, match=r"gpus=(3|all)|jobs_per_gpu=0|cpu_slots=0"):
        make_slots(gpus, jobs_per_gpu, cpu_slots)


@pytest.mark.parametrize(("allowed", "gpus"), [("", []), ("-1", []), ("3,-1,1", ["3"]), ("GPU-8a,1", ["GPU-8a", "1"])])
def test_gpus_that_the_environment_allows(allowed: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert visible_gpus() == gpus


def test_no_gpu_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert visible_gpus() == []


def test_a_worker_without_a_job_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "IDLE_SECONDS", 0.2)
    slot = Slot("cpu 0", {})
    try:
        worker = slot.submit(os.getpid).result(60)
        deadline = time.monotonic() + 60
        while Path(f"/proc/{worker}").exists():
            assert time.monotonic() < deadline, "it is still there"
            time.sleep(0.1)
        assert slot.submit(os.getpid).result(60) != worker
    finally:
        slot.end()
