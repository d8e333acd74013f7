"""A belief that reads slates and clicks with linear recurrent units.

Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences", arXiv 2303.06349.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu, linear

from slaterl.beliefs.frames import EmbeddedFrames
from slaterl.bounds import Count, Discount
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.errors import UserError
from slaterl.layers import first_derivative_only


class LRUBelief(EmbeddedFrames):
    """Layers of linear recurrent units over the embedded frames, with a layer norm at the end.

    The memory is the state, and the complex states of the layers as pairs of real numbers.

    Args:
        item_dim: width of the item embeddings.
        hidden_dim: W, width of the embedded frames and of the state, and number of complex units in a layer.
        layers: number of layers.
        min_radius, max_radius: range of |lambda| at the start. A unit with |lambda| = 0.99 remembers 100 turns.
        shared: see Belief.

    Raises:
        UserError: min_radius is not below max_radius.
    """

    layers: Sequence[LinearRecurrence]

    def __init__(
        self,
        *,
        num_items: int,
        slate_size: int,
        item_dim: Count,
        hidden_dim: Count,
        layers: Count,
        min_radius: Discount,
        max_radius: Discount,
        shared: bool = False,
    ) -> None:
        if min_radius >= max_radius:
            raise UserError(f"belief.min_radius={min_radius}: must be below belief.max_radius={max_radius}")
        super().__init__(num_items, slate_size, item_dim, hidden_dim, shared)
        self.layers = nn.ModuleList(LinearRecurrence(hidden_dim, min_radius, max_radius) for _ in range(layers))  # type: ignore[assignment] # it is a sequence
        self.norm = nn.LayerNorm(hidden_dim)

    @property
    def memory_dim(self) -> int:
        return (1 + 2 * len(self.layers)) * self.state_dim

    def step(self, observation: Observation | PrivilegedObservation, memory: Tensor) -> Tensor:
        width, hidden = self.state_dim, self.embed(observation)
        kept = []
        for layer, part in zip(self.layers, memory[:, width:].split(2 * width, dim=1), strict=True):
            real, imaginary = part.chunk(2, dim=1)
            inputs = layer.norm(hidden)
            units = layer.eigenvalues() * torch.complex(real, imaginary) + layer.driven(inputs)
            hidden = hidden + layer.read_out(units, inputs)
            kept += [units.real, units.imag]
        return torch.cat([self.norm(hidden), *kept], dim=1)

    def over(self, embedded: Tensor) -> Tensor:
        hidden = embedded
        for layer in self.layers:
            inputs = layer.norm(hidden)
            units = linear_scan(layer.driven(inputs), layer.eigenvalues())
            hidden = hidden + layer.read_out(units, inputs)
        return self.norm(hidden)


class LinearRecurrence(nn.Module):
    """x_t = lambda * x_{t-1} + gamma * B u_t and y_t = Re(C x_t) + D * u_t, then glu(W gelu(y_t)).

    lambda = exp(-exp(nu_log) + i exp(theta_log)) keeps |lambda| below 1 (section 3.3). gamma starts at
    sqrt(1 - |lambda|^2), which makes all units about equally large (section 3.4). Initialisation as in appendix A.

    Args:
        width: of u and y, and the number N of complex units x.
    """

    def __init__(self, width: int, min_radius: float, max_radius: float) -> None:
        super().__init__()
        square = torch.rand(width) * (max_radius**2 - min_radius**2) + min_radius**2  # |lambda|^2, uniform on the ring
        square = square.clamp(min=1e-6)
        self.norm = nn.LayerNorm(width)
        self.nu_log = nn.Parameter((-0.5 * square.log()).log())
        self.theta_log = nn.Parameter((2 * math.pi * torch.rand(width).clamp(min=1e-6)).log())
        self.gamma_log = nn.Parameter(0.5 * (1 - square).log())
        self.inputs = nn.Parameter(torch.randn(2 * width, width) / math.sqrt(2 * width))  # B: real parts, imaginary
        self.outputs = nn.Parameter(torch.randn(width, 2 * width) / math.sqrt(width))  # Re C and -Im C
        self.skip = nn.Parameter(torch.randn(width))  # D
        self.gate = nn.Linear(width, 2 * width)

    def eigenvalues(self) -> Tensor:
        """Return lambda, complex [N]."""
        return torch.polar((-self.nu_log.exp()).exp(), self.theta_log.exp())

    def driven(self, inputs: Tensor) -> Tensor:
        """Return gamma * B u, complex [..., N], of inputs u [..., W]."""
        gamma = self.gamma_log.exp().repeat(2).unsqueeze(1)
        real, imaginary = linear(inputs, gamma * self.inputs).chunk(2, dim=-1)
        return torch.complex(real, imaginary)

    def read_out(self, units: Tensor, inputs: Tensor) -> Tensor:
        """Return the gated outputs [..., W] of units x, complex [..., N], and inputs u [..., W]."""
        y = linear(torch.cat([units.real, units.imag], dim=-1), self.outputs) + self.skip * inputs
        return glu(self.gate(gelu(y)), dim=-1)


def linear_scan(driven: Tensor, eigenvalues: Tensor) -> Tensor:
    """Return x_t = lambda * x_{t-1} + b_t for b [T, ..., N] and lambda [N], both complex, with x = 0 before b_0.

    A parallel scan: after k rounds x_t holds the last 2^k terms of its sum, so log2 T rounds are enough.
    """
    return _LinearScan.apply(driven, eigenvalues) if torch.is_grad_enabled() else _scan(driven, eigenvalues)


def _scan(driven: Tensor, eigenvalues: Tensor) -> Tensor:
    x, power, shift = driven.clone(memory_format=torch.contiguous_format), eigenvalues, 1
    while shift < len(x):
        x[shift:] += power * x[:-shift]
        power, shift = power * power, 2 * shift
    return x


class _LinearScan(torch.autograd.Function):
    """The gradient of the scan is a scan back in time: g_t = dL/dx_t + conj(lambda) * g_{t+1}."""

    @staticmethod
    def forward(ctx: Any, driven: Tensor, eigenvalues: Tensor) -> Tensor:
        x = _scan(driven, eigenvalues)
        ctx.save_for_backward(x, eigenvalues)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        first_derivative_only("scan of the LRU")
        x, eigenvalues = ctx.saved_tensors
        found = _scan(grad.flip(0), eigenvalues.conj()).flip(0)
        return found, (found[1:] * x[:-1].conj()).flatten(0, -2).sum(0)
