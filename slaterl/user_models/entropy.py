"""How much the behaviour of a dataset varies after each item."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from slaterl.data.trajectories import Trajectories
from slaterl.user_models.coverage import counted, parts


def next_item_entropies(data: Trajectories, num_items: int) -> Tensor:
    """Return H(next item | item) / log N of each item, in [0, 1]: [N], float32.

    This is the entropy of order 1 of DORL (Gao et al., arXiv 2307.04571), for slates. P(j | i) is the share of j among
    all items that the sessions show in the turn after one that shows i. Divided by log N, the entropy is 1 minus the
    scaled divergence of P from uniform items. An item that no turn follows has the entropy 0.
    """
    keys, counts = counted(_pairs(part, num_items) for part in parts(data))
    item, count = keys // num_items, counts.double()
    total = torch.zeros(num_items, dtype=torch.float64).index_add_(0, item, count)
    weighted = torch.zeros_like(total).index_add_(0, item, count * count.log())
    entropy = total.log() - weighted / total  # log n - sum_j c_j log c_j / n
    return (entropy.where(total > 0, 0.0) / math.log(max(2, num_items))).clamp(0, 1).float()


def _pairs(data: Trajectories, num_items: int) -> Tensor:
    """Number the pairs of an item and one in the next slate of its session, without frame 0, which nobody chose."""
    shown = data.slates[:, 1:].cpu().long()
    pairs = shown[:, :-1, :, None] * num_items + shown[:, 1:, None, :]  # [N, H - 1, S, S]
    return pairs[data.mask[:, 1:].cpu()].flatten()
