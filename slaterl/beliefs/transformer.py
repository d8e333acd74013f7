"""A belief that reads slates and clicks with a causal transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from slaterl.beliefs.frames import EmbeddedFrames
from slaterl.bounds import Count
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.errors import UserError


class TransformerBelief(EmbeddedFrames):
    """Layers of attention over the embedded frames, with a layer norm at the end.

    In each layer a frame attends to itself and the K - 1 frames before it. So L layers see L * (K - 1) frames back.
    The memory is the state, a cache of K keys and values for each layer, and the number of frames so far.

    Args:
        item_dim: width of the item embeddings.
        hidden_dim: W, width of the embedded frames and of the state.
        layers, heads: L, and attention heads in a layer.
        context: K, in frames.
        shared: see Belief.

    Raises:
        UserError: hidden_dim is not a multiple of heads.
    """

    layers: Sequence[AttentionLayer]

    def __init__(
        self,
        *,
        num_items: int,
        slate_size: int,
        item_dim: Count,
        hidden_dim: Count,
        layers: Count,
        heads: Count,
        context: Count,
        shared: bool = False,
    ) -> None:
        if hidden_dim % heads:
            raise UserError(f"belief.hidden_dim={hidden_dim}: must be a multiple of belief.heads={heads}")
        super().__init__(num_items, slate_size, item_dim, hidden_dim, shared)
        self.context = context
        self.layers = nn.ModuleList(AttentionLayer(hidden_dim, heads, context) for _ in range(layers))  # type: ignore[assignment] # it is a sequence
        self.norm = nn.LayerNorm(hidden_dim)

    @property
    def memory_dim(self) -> int:
        return self.state_dim + len(self.layers) * self.context * 2 * self.state_dim + 1

    def step(self, observation: Observation | PrivilegedObservation, memory: Tensor) -> Tensor:
        hidden = self.embed(observation).unsqueeze(1)  # [B, 1, W]
        cache = memory[:, self.state_dim : -1].unflatten(1, (len(self.layers), self.context, -1))
        count = memory[:, -1:] + 1
        back = torch.arange(self.context - 1, -1, -1, device=memory.device)
        there = (back < count)[:, None, None]  # [B, 1, 1, K]
        kept = []
        for layer, past in zip(self.layers, cache.unbind(1), strict=True):
            queries, new = layer.project(hidden)
            pairs = torch.cat([past[:, 1:], new], dim=1)
            bias = layer.bias.flip(1).unsqueeze(1).where(there, -torch.inf)
            hidden = layer.after(hidden, layer.attend(queries, pairs, bias))
            kept.append(pairs.flatten(1))
        return torch.cat([self.norm(hidden).squeeze(1), *kept, count], dim=1)

    def over(self, embedded: Tensor) -> Tensor:
        hidden = embedded.transpose(0, 1)  # [B, T, W]
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden).transpose(0, 1)


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
