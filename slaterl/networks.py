"""The small networks of agents, beliefs and rankers, their targets, and the tanh-Gaussian policy."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, softplus

from slaterl.layers import layers

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
# Floor for policies that imitate. A smaller deviation changes no slate, and dimensions that hardly vary would dominate.
LOG_STD_OF_DATA = -2.0
# Recorded actions are clipped to this, because tanh never reaches 1. Nearer to 1, the few actions at the edge of the
# box would lie so far out before the tanh that they alone set the policy's deviation.
EDGE = 0.99

Module = TypeVar("Module", bound=nn.Module)


class MLP(nn.Sequential):
    """Linear layers with ReLU between them, maybe with a layer norm after each ReLU.

    It takes [..., inputs], or several tensors to join along their last axis, and returns [..., outputs].
    """

    def forward(self, *inputs: Tensor) -> Tensor:
        run: list[Tensor] = []  # parameters of the layers up to the next layer norm
        for part in self:
            if isinstance(part, nn.Linear):
                run += [part.weight, part.bias]
            elif isinstance(part, nn.LayerNorm):
                inputs, run = (part(layers(inputs, run, relu_last=True)),), []
        return layers(inputs, run)

    def twice_differentiable(self, inputs: Tensor) -> Tensor:
        """Return the same outputs by torch's own layers, whose gradients have gradients, too."""
        return nn.Sequential.forward(self, inputs)


class Linear(nn.Linear):
    """A linear layer by the faster products of `slaterl.layers`. It has no second derivative."""

    def forward(self, inputs: Tensor) -> Tensor:
        return layers([inputs], [self.weight, self.bias])


def mlp(inputs: int, hidden: Sequence[int], outputs: int, layer_norm: bool = False) -> MLP:
    """Build linear layers with ReLU between them. With `layer_norm`, a layer norm follows each ReLU."""
    widths = [inputs, *hidden]
    parts: list[nn.Module] = []
    for fan_in, width in zip(widths, hidden, strict=False):
        parts += [nn.Linear(fan_in, width), nn.ReLU()]
        parts += [nn.LayerNorm(width)] if layer_norm else []
    return MLP(*parts, nn.Linear(widths[-1], outputs))


class Critics(nn.Module):
    """n independent MLPs with one output each, on the same inputs: [..., inputs] -> [n, ...]."""

    def __init__(self, count: int, inputs: int, hidden: Sequence[int], layer_norm: bool = False) -> None:
        super().__init__()
        self.members = nn.ModuleList(mlp(inputs, hidden, 1, layer_norm) for _ in range(count))

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.stack([member(*inputs).squeeze(-1) for member in self.members])


def target_of(online: Module) -> Module:
    """Copy a network as its own target: equal weights that take no gradient. `polyak` moves it."""
    return copy.deepcopy(online).requires_grad_(False)


@torch.no_grad()
def polyak(online: nn.Module, target: nn.Module, tau: float) -> None:
    """Move a target network towards the online one: target <- (1 - tau) * target + tau * online."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside the block, compute no gradients for the module's parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def gaussian_action(
    parameters: Tensor, generator: torch.Generator | None, least_log_std: float = LOG_STD_MIN
) -> Tensor:
    """Act by a tanh-Gaussian: means and log-deviations [..., 2A] -> actions [..., A] in [-1, 1].

    Without a generator, return the tanh of the mean; with one, draw.
    """
    if generator is None:
        return parameters.chunk(2, dim=-1)[0].tanh()
    return draw(parameters, generator, least_log_std)[0].tanh()


def tanh_gaussian(
    parameters: Tensor, generator: torch.Generator, least_log_std: float = LOG_STD_MIN
) -> tuple[Tensor, Tensor]:
    """Draw actions [..., A] in [-1, 1] from means and log-deviations [..., 2A], with their log-probabilities [...].

    The draws are reparameterised. log pi(a) = log N(x) - log(1 - tanh(x)^2), summed over the action
    (arXiv 1812.05905, appendix C). The form used here stays precise where tanh saturates.
    """
    raw, noise, log_std = draw(parameters, generator, least_log_std)
    return raw.tanh(), _log_density(raw, noise, log_std)


def log_prob_of(parameters: Tensor, action: Tensor) -> Tensor:
    """Return log pi(a) [...] of recorded actions [..., A] in [-1, 1] under means and log-deviations [..., 2A].

    Deviations have the floor LOG_STD_OF_DATA. What learns by this density has to draw with it, too.
    """
    mean, log_std = parameters.chunk(2, dim=-1)
    log_std = log_std.clamp(LOG_STD_OF_DATA, LOG_STD_MAX)
    raw = action.clamp(-EDGE, EDGE).atanh()
    return _log_density(raw, (raw - mean) * (-log_std).exp(), log_std)


def draw(
    parameters: Tensor, generator: torch.Generator, least_log_std: float = LOG_STD_MIN
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw from a Gaussian: values before the tanh, standard normal noise and log-deviations, each [..., A]."""
    mean, log_std = parameters.chunk(2, dim=-1)
    log_std = log_std.clamp(least_log_std, LOG_STD_MAX)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return torch.addcmul(mean, log_std.exp(), noise), noise, log_std


def _log_density(raw: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
    log_gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - raw - softplus(-2 * raw))
    return (log_gaussian - log_slope).sum(-1)


def with_gumbel_noise(scores: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gumbel noise to scores [..., N]. The largest is then a draw from their softmax."""
    return scores - torch.empty_like(scores).exponential_(generator=generator).log()


class AttentionLayer(nn.Module):
    """Attention and an MLP, each after a layer norm and added to its input.

    Each head has a learned bias for each distance. So a cached key need not know its turn. The biases start at ALiBi's
    slopes, -2^(-8 h / heads) per frame (Press et al., arXiv 2108.12409).
    """

    def __init__(self, width: int, heads: int, context: int, linear: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.heads, self.context = heads, context
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_queries, self.to_pairs = linear(width, width), linear(width, 2 * width)  # keys and values
        self.joined = linear(width, width)
        self.widened, self.narrowed = linear(width, 4 * width), linear(4 * width, width)
        slopes = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
        self.bias = nn.Parameter(-slopes.unsqueeze(1) * torch.arange(context))  # [heads, K], by distance

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries [B, T, W] and pairs of keys and values [B, T, 2W] of T frames."""
        normed = self.attention_norm(hidden)
        return self.to_queries(normed), self.to_pairs(normed)

    def attend(self, queries: Tensor, pairs: Tensor, bias: Tensor) -> Tensor:
        """Let queries [B, T, W] attend to pairs [B, U, 2W] with biases [(B,) heads, T, U]. Returns [B, T, W]."""
        queries = queries * (self.heads / queries.shape[2]) ** 0.5
        q = queries.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, W / heads]
        k, v = pairs.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weight = (q @ k.transpose(2, 3) + bias).softmax(3)
        return self.joined((weight @ v).transpose(1, 2).flatten(2))

    def after(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + attended
        return hidden + self.narrowed(gelu(self.widened(self.mlp_norm(hidden))))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]. Blocks of K queries, with the keys that they see, take time linear in T."""
        queries, pairs = self.project(hidden)
        turn = torch.arange(hidden.shape[1], device=hidden.device)
        attended = []
        for start in range(0, hidden.shape[1], self.context):
            block, seen = (
                slice(start, start + self.context),
                slice(max(0, start - self.context + 1), start + self.context),
            )
            back = turn[block].unsqueeze(1) - turn[seen]  # distances
            outside = (back < 0) | (back >= self.context)
            bias = self.bias[:, back.clamp(0, self.context - 1)].masked_fill(outside, -torch.inf)
            attended.append(self.attend(queries[:, block], pairs[:, seen], bias))
        return self.after(hidden, torch.cat(attended, dim=1))
