"""The small networks that agents are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    widths = [inputs, *hidden, outputs]
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Critics(nn.Module):
    """n independent MLPs of one output on the same input: [..., inputs] -> [n, ...]."""

    def __init__(self, count: int, inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.members = nn.ModuleList(mlp(inputs, hidden, 1) for _ in range(count))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(inputs).squeeze(-1) for member in self.members])


@torch.no_grad()
def polyak(online: nn.Module, target: nn.Module, tau: float) -> None:
    """target <- (1 - tau) * target + tau * online."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)
