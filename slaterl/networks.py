"""The small networks that agents are made of, and the tanh-Gaussian policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
LOG_STD_OF_DATA = -2.0  # finer than that no slate changes; dimensions that hardly vary would outweigh all others
EDGE = 1 - 1e-4  # recorded actions beyond count as on it: tanh reaches 1 nowhere


def mlp(inputs: int, hidden: Sequence[int], outputs: int, layer_norm: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between them, and a layer norm after each ReLU where asked for."""
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for fan_in, width in zip(widths, hidden, strict=False):
        layers += [nn.Linear(fan_in, width), nn.ReLU(inplace=True)]
        layers += [nn.LayerNorm(width)] if layer_norm else []
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


class Critics(nn.Module):
    """n independent MLPs of one output on the same input: [..., inputs] -> [n, ...]."""

    def __init__(self, count: int, inputs: int, hidden: Sequence[int], layer_norm: bool = False) -> None:
        super().__init__()
        self.members = nn.ModuleList(mlp(inputs, hidden, 1, layer_norm) for _ in range(count))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(inputs).squeeze(-1) for member in self.members])


@torch.no_grad()
def polyak(online: nn.Module, target: nn.Module, tau: float) -> None:
    """target <- (1 - tau) * target + tau * online."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)


def tanh_gaussian(parameters: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Reparameterised draws [..., A] in [-1, 1] from means and log-deviations [..., 2A], and their log-probabilities.

    log pi(a) = log N(x) - log(1 - tanh(x)^2) summed over the action (appendix C of arXiv 1812.05905), in the form that
    does not lose precision where tanh saturates.
    """
    raw, noise, log_std = draw(parameters, generator)
    return raw.tanh(), _log_density(raw, noise, log_std)


def log_prob_of(parameters: Tensor, action: Tensor) -> Tensor:
    """log pi(a) of recorded actions [..., A] in [-1, 1] under means and log-deviations [..., 2A]."""
    mean, log_std = parameters.chunk(2, dim=-1)
    log_std = log_std.clamp(LOG_STD_OF_DATA, LOG_STD_MAX)
    raw = action.clamp(-EDGE, EDGE).atanh()
    return _log_density(raw, (raw - mean) * (-log_std).exp(), log_std)


def draw(parameters: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian draws before the tanh, the standard normal noise in them, and the log-deviations, each [..., A]."""
    mean, log_std = parameters.chunk(2, dim=-1)
    log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return torch.addcmul(mean, log_std.exp(), noise), noise, log_std


def _log_density(raw: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
    log_gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - raw - softplus(-2 * raw))
    return (log_gaussian - log_slope).sum(-1)
