"""Settings of the process: which of them an older C library takes."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import pytest

from slaterl.runtime import keep_freed_memory

TRIM, MMAP = -1, -3
MEBIBYTE = 1 << 20


class FakeLibc:
    """A glibc that refuses an mmap threshold above `largest`; `taken` are the settings that it accepted."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.taken: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == MMAP and value > self.largest:
            return 0
        self.taken[parameter] = value
        return 1


@pytest.mark.parametrize(("largest", "threshold"), [(1 << 40, 1024 * MEBIBYTE), (32 * MEBIBYTE, 32 * MEBIBYTE)])
def test_older_glibc_gets_the_largest_threshold_that_it_takes(largest: int, threshold: int) -> None:
    libc = FakeLibc(largest)
    keep_freed_memory(libc)
    assert libc.taken == {MMAP: threshold, TRIM: 1024 * MEBIBYTE}


def test_trim_threshold_is_not_set_alone() -> None:
    """It would freeze the mmap threshold at its small default."""
    libc = FakeLibc(MEBIBYTE)
    keep_freed_memory(libc)
    assert libc.taken == {}


def test_a_libc_without_mallopt() -> None:
    keep_freed_memory(SimpleNamespace())


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_the_fake_behaves_as_glibc() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        pytest.skip("no glibc")
    assert libc.mallopt(MMAP, 32 * MEBIBYTE) == 1
    keep_freed_memory(libc)
