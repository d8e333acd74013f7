"""Pieces of one session or user of a log: they stay together where data are split or resampled.

Clicks of one user are alike. If pieces counted as independent, held-out ones would be known, and intervals too narrow.
N trajectories in G groups; trajectories without groups are a group each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from slaterl.data.trajectories import Trajectories


def numbered(data: Trajectories) -> tuple[Tensor, int]:
    """Return the group [N] of each trajectory as a number in 0..G-1, and G."""
    if data.group is None:
        return torch.arange(len(data), device=data.slates.device), len(data)
    found, number = data.group.unique(return_inverse=True)
    return number, len(found)


def shuffled(data: Trajectories, generator: torch.Generator) -> Tensor:
    """Return all trajectories [N] in random order, those of a group side by side. The generator is on the CPU."""
    number, count = numbered(data)
    order = torch.randperm(count, generator=generator)
    return order if data.group is None else order.argsort()[number.cpu()].argsort(stable=True)


def boundary(data: Trajectories, place: int) -> int:
    """Return the first place from `place` on that divides no group, in data whose groups lie side by side."""
    if data.group is None or not 0 < place < len(data):
        return place
    begins = (data.group[place:] != data.group[place - 1 : -1]).nonzero()
    return place + int(begins[0]) if len(begins) else len(data)


def bootstrap(data: Trajectories, generator: torch.Generator) -> Tensor:
    """Draw a bootstrap sample [N]: groups with replacement, cut after N trajectories. The generator is on the CPU."""
    if data.group is None:
        return torch.randint(len(data), (len(data),), generator=generator)
    number, count = numbered(data)
    order, sizes = number.cpu().argsort(stable=True), number.cpu().bincount(minlength=count)
    starts, found, drawn = sizes.cumsum(0) - sizes, 0, []
    while found < len(data):
        chosen = torch.randint(count, (count,), generator=generator)
        drawn.append(_members(order, starts[chosen], sizes[chosen]))
        found += len(drawn[-1])
    return torch.cat(drawn)[: len(data)]


def _members(order: Tensor, starts: Tensor, sizes: Tensor) -> Tensor:
    """Return the trajectories of groups one after the other: those at starts..starts + sizes of the order."""
    inside = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return order[starts.repeat_interleave(sizes) + inside]


def summed(values: Tensor, data: Trajectories) -> Tensor:
    """Sum values [N, ...] of trajectories over their groups, [G, ...]."""
    if data.group is None:
        return values
    number, count = numbered(data)
    return values.new_zeros(count, *values.shape[1:]).index_add_(0, number.to(values.device), values)


def half_width_of_mean(values: Tensor, data: Trajectories) -> float | None:
    """Return the half-width of the 95 % interval of the mean of values [N], from the groups' sums; None for one group.

    Each group counts as one draw, however many trajectories it has (cluster-robust, Liang and Zeger 1986).
    """
    values = values.double()
    rest = summed(values - values.mean(), data)
    count = len(rest)
    if count == 1:
        return None
    return 1.96 * math.sqrt(rest.square().sum().item() * count / (count - 1)) / len(values)
