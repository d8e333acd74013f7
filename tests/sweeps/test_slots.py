"""Slots: which GPU each job sees, and how many threads it may use."""

from __future__ import annotations

import os

import pytest

from slaterl.errors import UserError
from slaterl.sweeps.slots import make_slots, visible_gpus


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")


def seen(slots: list) -> list[str]:
    return [slot.env["CUDA_VISIBLE_DEVICES"] for slot in slots]


def test_one_gpu_for_each_job(cores: None) -> None:
    slots, threads = make_slots("auto", 1, None)
    assert seen(slots) == ["2", "5"] and threads == 8
    slots, threads = make_slots("auto", 3, None)
    assert sorted(seen(slots)) == ["2", "2", "2", "5", "5", "5"] and threads == 2
    assert seen(slots)[:2] == ["2", "5"], "two jobs are spread over two GPUs"
    slots, threads = make_slots(1, 1, None)
    assert seen(slots) == ["2"] and threads == 16


def test_cpu_slots_see_no_gpu(cores: None) -> None:
    slots, threads = make_slots(0, 1, 5)
    assert seen(slots) == [""] * 5 and threads == 3
    assert slots[0].env["OMP_NUM_THREADS"] == "3"
    assert len({slot.name for slot in slots}) == 5
    slots, threads = make_slots(0, 1, None)
    assert len(slots) == 16 and threads == 1


@pytest.mark.parametrize(("gpus", "jobs_per_gpu", "cpu_slots"), [(3, 1, None), ("all", 1, 1), (1, 0, 1), (0, 1, 0)])
def test_mistakes_are_named(cores: None, gpus: str | int, jobs_per_gpu: int, cpu_slots: int | None) -> None:
    with pytest.raises(UserError, match=r"gpus=(3|all)|jobs_per_gpu=0|cpu_slots=0"):
        make_slots(gpus, jobs_per_gpu, cpu_slots)


def test_no_gpu_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert visible_gpus() == []
