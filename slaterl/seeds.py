"""Derive many independent streams of random numbers from one seed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def stream_seed(seed: int, name: str) -> int:
    """Return the seed of the stream `name`, independent of the other streams and of the order of their creation."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a generator on the device for the stream `name`."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, name))


@contextlib.contextmanager
def seeded_weights(seed: int, name: str) -> Iterator[None]:
    """Seed torch's global generator, which initialises weights, with the stream `name`; restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, name))  # torch.manual_seed would also set CUDA's
        yield
