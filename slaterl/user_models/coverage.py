"""What the data have seen often enough: items at a rank, and pairs of items in a slate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from slaterl.data.trajectories import Trajectories
from slaterl.user_models.quality import shown_turns

SESSIONS = 1000  # counted at a time, which bounds the memory


class Coverage(NamedTuple):
    """Sorted keys [n] int64 of all (item, rank) cells and all pairs of items that were shown often enough."""

    cells: Tensor
    pairs: Tensor


def coverage_of(data: Trajectories, num_items: int, least: int) -> Coverage:
    """Find the cells and the pairs with at least `least` impressions in the sessions."""
    found = []
    for keys_of in (cell_keys, pair_keys):
        keys, counts = counted(keys_of(shown_turns(part)[0].cpu(), num_items) for part in parts(data))
        found.append(keys[counts >= least])
    return Coverage(*found)


def parts(data: Trajectories) -> Iterator[Trajectories]:
    """Yield the sessions, some at a time, so that what is made of them fits into memory."""
    for start in range(0, len(data), SESSIONS):
        yield data[start : start + SESSIONS]


def counted(several: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Count the keys in several tensors, int64 on the CPU. Returns those that occur, sorted, and their counts, [n]."""
    keys, counts = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    for part in several:
        new, times = part.flatten().unique(return_counts=True)
        keys, place = torch.cat([keys, new]).unique(return_inverse=True)
        counts = torch.zeros(len(keys), dtype=torch.int64).index_add_(0, place, torch.cat([counts, times]))
    return keys, counts


def cell_keys(slates: Tensor, num_items: int) -> Tensor:
    """Number the cells (item, rank) of slates: [..., S] -> [..., S]."""
    return slates.long() + num_items * torch.arange(slates.shape[-1], device=slates.device)


def pair_keys(slates: Tensor, num_items: int) -> Tensor:
    """Number the pairs of items in slates, whatever their order: [..., S] -> [..., S * (S - 1) / 2]."""
    items = slates.long().sort(-1).values
    first, second = torch.triu_indices(items.shape[-1], items.shape[-1], offset=1, device=items.device)
    return items[..., first] * num_items + items[..., second]


def covered(coverage: Coverage, data: Trajectories, num_items: int) -> dict[str, float]:
    """Return the shares of shown cells and of shown pairs that the data have seen often enough, in 0..1.

    A slate of one item has no pairs; their share is 1 then.
    """
    slates, _ = shown_turns(data)
    shares = {}
    for name, known, keys_of in (("cells", coverage.cells, cell_keys), ("pairs", coverage.pairs, pair_keys)):
        keys = keys_of(slates.cpu(), num_items)
        shares[f"covered_{name}"] = torch.isin(keys, known).double().mean().item() if keys.numel() else 1.0
    return shares
