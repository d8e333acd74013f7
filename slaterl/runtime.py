"""Settings of the process."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ONE_GIBIBYTE = 1 << 30
_32_MEBIBYTES = 32 << 20  # the largest M_MMAP_THRESHOLD that older versions of glibc accept


def prepare(threads: int) -> None:
    """Set the number of torch's threads and let the allocator keep freed memory."""
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        keep_freed_memory(ctypes.CDLL(None))


def keep_freed_memory(libc: Any) -> None:
    """Let malloc reuse the memory of freed tensors instead of returning it to the system.

    By default, glibc maps new pages for each tensor above a few hundred kilobytes and returns them when it is freed.
    An update would spend a third of its time on page faults.

    `mallopt` returns 0 if it refuses a value. Setting the trim threshold also freezes the mmap threshold at its
    present value. If that value is the small default, updates take twice as long as without any setting.
    """
    if not hasattr(libc, "mallopt"):  # musl
        return
    if libc.mallopt(_M_MMAP_THRESHOLD, _ONE_GIBIBYTE) or libc.mallopt(_M_MMAP_THRESHOLD, _32_MEBIBYTES):
        libc.mallopt(_M_TRIM_THRESHOLD, _ONE_GIBIBYTE)
