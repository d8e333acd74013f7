"""Processor cores: how many this process may use, and how many are free. Without torch, because launchers use it."""

from __future__ import annotations

import contextlib
import functools
import os
import sys


def usable_cores() -> int:
    """Count the cores that this process may use. In a SLURM job these are the cores of the job."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


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
