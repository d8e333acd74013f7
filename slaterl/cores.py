"""Processor cores: how many this process may use, and how many are free. Without torch, because launchers use it."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CONTROL_GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Count the cores that this process may use, at least one.

    In a SLURM job these are the cores of the job. In a container, they are as many as its share of time is worth.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas()])))


def _quotas() -> Iterator[float]:
    """Yield the limits on processor time, in cores, of the control groups of this process, of versions 1 and 2."""
    with contextlib.suppress(OSError):
        for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            for root in (CONTROL_GROUPS / controllers, CONTROL_GROUPS / "cpu") if controllers else (CONTROL_GROUPS,):
                group = root / path.lstrip("/")
                # a limit of a group holds for the groups inside it; in a container, the path may not exist
                for folder in (group, *group.parents[: len(group.parts) - len(root.parts)]):
                    yield from _quota_of(folder)


def _quota_of(group: Path) -> Iterator[float]:
    """Yield the limit of a control group, in cores, if it has one."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:  # -1 in version 1: no limit
            yield int(quota) / int(period)


@functools.cache
def free_cores() -> int:
    """Count the usable cores that are free, by the machine's load in the last minute. It can be 0 or less.

    It looks only once, because later the load includes this process.
    """
    load = 0
    with contextlib.suppress(AttributeError, OSError):  # Windows has no load
        load = round(os.getloadavg()[0])
    # the load may come from cores that this process may not use anyway
    return min(usable_cores(), (os.cpu_count() or 1) - load)
