"""Settings of the process."""

from __future__ import annotations

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ONE_GIBIBYTE = 1 << 30


def prepare(threads: int) -> None:
    """Set torch's threads, and let freed memory be used again instead of returned.

    glibc gives each tensor of more than a few hundred kilobytes pages of its own and returns them when it is freed;
    an update would spend a third of its time on page faults.
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not in musl
            libc.mallopt(_M_MMAP_THRESHOLD, _ONE_GIBIBYTE)
            libc.mallopt(_M_TRIM_THRESHOLD, _ONE_GIBIBYTE)
