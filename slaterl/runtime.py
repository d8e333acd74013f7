"""Settings of the process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any, Literal

import torch

from slaterl.console import note
from slaterl.cores import free_cores

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ONE_GIBIBYTE = 1 << 30
_MOST_THREADS = 2  # chosen by threads=auto, because more hardly help
_32_MEBIBYTES = 32 << 20  # the largest M_MMAP_THRESHOLD that older versions of glibc accept


def prepare(threads: int | Literal["auto"], matmul_precision: str) -> None:
    """Set torch's threads and the precision of its products, and let the allocator keep freed memory.

    Args:
        threads: "auto" uses two threads if at least two cores are free and OMP_NUM_THREADS allows two, else one.
    """
    torch.set_num_threads(_free_threads() if threads == "auto" else threads)
    torch.set_float32_matmul_precision(matmul_precision)  # also "highest": an earlier job may have left "medium"
    if sys.platform == "linux":
        keep_freed_memory(ctypes.CDLL(None))


def _free_threads() -> int:
    allowed = os.environ.get("OMP_NUM_THREADS", "")  # set by local_gpus, whose jobs start at once on idle cores
    most = min(int(allowed), _MOST_THREADS) if allowed.isdecimal() else _MOST_THREADS
    return max(1, min(free_cores(), most))


@contextlib.contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Let torch use this number of threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def warn_without_amx(device: torch.device) -> None:
    """Warn that matmul_precision=medium makes nothing faster, if the device is a processor without AMX."""
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return
    # older versions of torch cannot say what the processor has
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    if not has_amx():
        why = "only processors with AMX gain from it, and this one has none"
        note(f"warning: matmul_precision=medium: {why}; products get no faster here, and some may get slower")


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Compute products of float32 in float32 within the block, whatever `matmul_precision` is.

    This holds for the CPU and the GPU. It does not hold for a backward pass that runs after the block.
    """
    # The newer torch.backends.*.matmul.fp32_precision cannot be mixed with set_float32_matmul_precision: torch then
    # refuses to say whether a GPU uses TensorFloat32.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
