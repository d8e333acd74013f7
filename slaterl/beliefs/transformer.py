"""A belief that reads slates and clicks with a causal transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slaterl.beliefs.frames import EmbeddedFrames
from slaterl.bounds import Count
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.errors import UserError
from slaterl.networks import AttentionLayer


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
