"""Cores: which of them a process may use, and how many the load leaves free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from slaterl.cores import free_cores, usable_cores
from slaterl.runtime import prepare

Machine = Callable[[int, int, "float | None"], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Pretend to be on another machine: its cores, those of them that this process may use, its load."""

    def pretend(cores: int, usable: int, load: float | None) -> None:
        free_cores.cache_clear()
        monkeypatch.setattr("sys.platform", "linux")
        monkeypatch.setattr("slaterl.cores.OWN_GROUPS", Path("no such file"))
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(usable)))
        if load is None:
            monkeypatch.delattr(os, "getloadavg")
        else:
            monkeypatch.setattr(os, "getloadavg", lambda: (load, 99.0, 99.0))

    yield pretend
    free_cores.cache_clear()


@pytest.mark.parametrize(
    ("cores", "usable", "load", "threads"),
    [
        (2, 2, 0.4, 2),
        (2, 2, 0.6, 1),  # another process uses a core
        (2, 2, 5.0, 1),
        (1, 1, 0.0, 1),
        (16, 16, 0.0, 2),  # more hardly help
        (16, 16, 14.0, 2),
        (16, 16, 15.0, 1),
        (64, 1, 0.0, 1),  # a SLURM job with one core
        (64, 2, 40.0, 2),  # the load may come from the other jobs of the node
        (64, 2, 63.0, 1),
        (2, 2, None, 2),  # Windows
    ],
)
def test_auto_takes_the_cores_that_are_free(
    cores: int, usable: int, load: float | None, threads: int, machine: Machine
) -> None:
    machine(cores, usable, load)
    assert usable_cores() == usable
    prepare("auto", "highest")
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("own", "limits", "usable"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1),
        ("0::/", {"cpu.max": "300000 100000"}, 3),
        ("0::/", {"cpu.max": "50000 100000"}, 1),  # at least one
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "1600000 100000"}, 8),  # more than there are
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),  # of the group around it
        ("0::/not/here", {"cpu.max": "200000 100000"}, 2),  # the path is that of the host
        ("0::/", {"cpu.max": "damaged"}, 8),
        ("0::/", {}, 8),
        ("5:memory:/x\n3:cpu,cpuacct:/x", {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000\n",
                                          "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}, 2),
        ("3:cpu,cpuacct:/x", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("5:memory:/x", {"memory/x/cpu.max": "100000 100000"}, 8),
    ],
)  # fmt: skip
def test_the_quota_of_a_container_counts(
    own: str, limits: dict[str, str], usable: int, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(16, 8, 0.0)
    for name, text in {"own": own, **{f"groups/{file}": limit for file, limit in limits.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("slaterl.cores.OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr("slaterl.cores.CONTROL_GROUPS", tmp_path / "groups")
    assert usable_cores() == free_cores() == usable


@pytest.mark.parametrize(("allowed", "threads"), [("1", 1), ("2", 2), ("8", 2), ("", 2), ("4,3", 2)])
def test_auto_takes_no_more_than_its_slot_has(
    allowed: str, threads: int, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs of local_gpus start together, when all cores are free."""
    machine(16, 16, 0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    prepare("auto", "highest")
    assert torch.get_num_threads() == threads


def test_own_load_does_not_count(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second job of a sweep in one process gets as many threads as the first, which caused the load."""
    machine(2, 2, 0.0)
    prepare("auto", "highest")
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 0.0, 0.0))
    prepare("auto", "highest")
    assert torch.get_num_threads() == 2


def test_a_load_that_cannot_be_read_counts_as_none(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(2, 2, 0.0)

    def unknown() -> tuple[float, float, float]:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", unknown)
    prepare("auto", "highest")
    assert torch.get_num_threads() == 2
