"""What the data have seen often enough: items at a rank, pairs of items in a slate, and slates as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slaterl.data.trajectories import Trajectories
from slaterl.user_models.quality import shown_turns

SESSIONS = 1000  # counted at a time, which bounds the memory
SLATES = 10_000  # compared at a time
PRIOR = 10.0  # pairs that are added to both counts of a comparison, so that rare ones say little
QUANTILE = 0.95  # of the strangeness of held-out slates; a slate beyond it is not covered


class Coverage(NamedTuple):
    """What the sessions have shown.

    Attributes:
        cells, pairs: sorted keys [n] int64 of all (item, rank) cells and all pairs of items shown often enough.
        counts: [pairs] how often each of these pairs was shown.
        items: [N] impressions of each item.
        limit: [] the strangeness of held-out slates that QUANTILE of them do not exceed.
            Files of older versions have none of these three.
    """

    cells: Tensor
    pairs: Tensor
    counts: Tensor | None = None
    items: Tensor | None = None
    limit: Tensor | None = None


def coverage_of(data: Trajectories, num_items: int, least: int, held_out: Trajectories | None = None) -> Coverage:
    """Find the cells and the pairs with at least `least` impressions in the sessions.

    Args:
        held_out: other sessions, whose slates say which strangeness is usual; None leaves whole slates out.
    """
    found: list[Tensor] = []
    often = torch.empty(0, dtype=torch.int64)
    for keys_of in (cell_keys, pair_keys):
        keys, counts = counted(keys_of(shown_turns(part)[0].cpu(), num_items) for part in parts(data))
        found.append(keys[counts >= least])
        often = counts[counts >= least]  # of the pairs, which come last
    shown = shown_turns(data)[0]
    coverage = Coverage(found[0], found[1], often, shown.cpu().flatten().long().bincount(minlength=num_items))
    if held_out is None:
        return coverage
    usual = _of_slates(coverage, shown_turns(held_out)[0].cpu(), num_items)
    return coverage._replace(limit=torch.tensor(np.quantile(usual.numpy(), QUANTILE)))


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


def strangeness(coverage: Coverage, slates: Tensor, num_items: int) -> Tensor:
    """Return how much more rarely than by chance the data show each pair of items of slates: [..., S] -> [..., pairs].

    It is max(0, log((e + PRIOR) / (c + PRIOR))), the negative part of pointwise mutual information (Church and Hanks
    1990). Here c counts the pair in the data. If slots were filled independently, items as frequent as these two would
    meet e times. So it tells items that are often shown and never together from items that are simply rare. A slate of
    one item has one value, 0.
    """
    assert coverage.items is not None and coverage.counts is not None
    size = slates.shape[-1]
    if size == 1:
        return torch.zeros(slates.shape, dtype=torch.float64)
    keys, total = pair_keys(slates, num_items), coverage.items.sum().double()
    first, second = keys // num_items, keys % num_items
    chance = (coverage.items[first] / total) * (coverage.items[second] / total) * torch.where(first == second, 1.0, 2.0)
    expected = chance * total * (size - 1) / 2
    counts = torch.zeros_like(expected)
    if len(coverage.pairs):
        place = torch.searchsorted(coverage.pairs, keys).clamp(max=len(coverage.pairs) - 1)
        counts = coverage.counts[place].double().where(coverage.pairs[place] == keys, 0.0)
    return ((expected + PRIOR) / (counts + PRIOR)).log().clamp(min=0)


def _of_slates(coverage: Coverage, slates: Tensor, num_items: int) -> Tensor:
    """Return the mean strangeness of the pairs of slates [M, S], [M]."""
    return torch.cat([strangeness(coverage, part, num_items).mean(-1) for part in slates.split(SLATES)])


def covered(coverage: Coverage, data: Trajectories, num_items: int) -> dict[str, float]:
    """Return the shares of shown cells and of shown pairs that the data have seen often enough, in 0..1.

    A slate of one item has no pairs; their share is 1 then. Also the share of slates that are no stranger than held-out
    ones, if the coverage knows these: about QUANTILE for a policy that shows slates as the data do.
    """
    slates, _ = shown_turns(data)
    shares = {}
    for name, known, keys_of in (("cells", coverage.cells, cell_keys), ("pairs", coverage.pairs, pair_keys)):
        keys = keys_of(slates.cpu(), num_items)
        shares[f"covered_{name}"] = torch.isin(keys, known).double().mean().item() if keys.numel() else 1.0
    if coverage.limit is not None:
        usual = _of_slates(coverage, slates.cpu(), num_items) <= coverage.limit
        shares["covered_slates"] = usual.double().mean().item()
    return shares
