"""A diffusion transformer that predicts the noise in planned frames, given the frames that were seen.

Planned frames go through the adaLN-zero blocks of Peebles and Xie, "Scalable Diffusion Models with Transformers"
(arXiv 2212.09748). Their shifts, scales and gates follow from the step and the condition, and start at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, layer_norm, mish

from slaterl.agents.offline.diffusion import TIME_DIM, StepEmbedding, mish_mlp
from slaterl.agents.offline.windows import Context
from slaterl.networks import AttentionLayer, Linear


class Seen(NamedTuple):
    """K frames that were seen, as the planned frames attend to them."""

    pairs: list[tuple[Tensor, Tensor]]  # keys and values [B, heads, K, W / heads] for each layer
    hidden: Tensor  # [B, K] frames before the episode's start


class Condition(NamedTuple):
    """What plans are asked for, for each of n plans of B users, or the same for all users."""

    value: Tensor  # [B or 1, n]
    known: Tensor  # [B or 1, n] False: the plan is asked for nothing


class PlanLayer(nn.Module):
    """Planned frames attend to the seen frames and to each other, then go through an MLP (adaLN-zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = zeros(nn.Linear(width, 6 * width))
        self.to_pairs = Linear(width, 2 * width)  # of seen frames
        self.to_triples = Linear(width, 3 * width)  # queries, keys and values of planned frames
        self.joined = Linear(width, width)
        self.widened, self.narrowed = Linear(width, 4 * width), Linear(4 * width, width)

    def pairs(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, heads, K, W / heads] of seen frames [B, K, W]."""
        keys, values = self.to_pairs(seen).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return keys, values

    def attend(self, plans: Tensor, pairs: tuple[Tensor, Tensor], hidden: Tensor, beyond: Tensor | None) -> Tensor:
        """Attend with n plans [B, n, F, W], each to itself and to the seen frames. Returns [B, n, F, W].

        All plans of a user read the same keys, which are not copied.

        Args:
            pairs, hidden: see Seen.
            beyond: [B, F] planned frames that nothing attends to; None: no frame.
        """
        triples = self.to_triples(plans).unflatten(3, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        queries, keys, values = triples.unbind()  # [B, n, heads, F, W / heads]
        queries = queries * queries.shape[-1] ** -0.5
        plan_shape = queries.shape[1], queries.shape[3]
        own = queries @ keys.transpose(3, 4)
        if beyond is not None:
            own = own.masked_fill(beyond[:, None, None, None], -torch.inf)
        rows = queries.transpose(1, 2).flatten(2, 3)  # [B, heads, n * F, W / heads]
        past = (rows @ pairs[0].transpose(2, 3)).masked_fill(hidden[:, None, None], -torch.inf)
        past = past.unflatten(2, plan_shape).transpose(1, 2)
        weight = torch.cat([past, own], dim=4).softmax(4)  # [B, n, heads, F, K + F]
        of_past, of_own = weight.split([past.shape[4], own.shape[4]], dim=4)
        read = of_past.transpose(1, 2).flatten(2, 3) @ pairs[1]
        read = read.unflatten(2, plan_shape).transpose(1, 2) + of_own @ values
        return self.joined(read.transpose(2, 3).flatten(3))

    def forward(
        self, plans: Tensor, guide: Tensor, pairs: tuple[Tensor, Tensor], hidden: Tensor, beyond: Tensor | None
    ) -> Tensor:
        """Plans [B, n, F, W] and what guides them [B or 1, n, W] -> [B, n, F, W]."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(guide).unsqueeze(2).chunk(6, dim=3)
        attended = self.attend(modulated(plans, shift, scale), pairs, hidden, beyond)
        plans = torch.addcmul(plans, gate, attended)
        inner = gelu(self.widened(modulated(plans, mlp_shift, mlp_scale)))
        return torch.addcmul(plans, mlp_gate, self.narrowed(inner))


class Planner(nn.Module):
    """Predict the noise in n plans of F frames (action and reward) for each of B users.

    Seen frames go through causal layers of their own first. They read neither noise, step nor condition. So a plan
    reads them once, however many steps and candidates it takes, and they stay as they were.

    A seen frame is embedded from its action and from the item and the click of each slot. Clicks of single slots say
    what a user likes. A planned frame holds the action and the reward alone: which slot will be clicked is mostly luck.

    Args:
        action_dim: A, of the ranker.
        context, frames: K seen and F planned frames.
        item_dim: width of the embeddings of shown items.
        width, depth, heads: W, layers of each kind, and attention heads.
        conditional: whether plans can be asked for something.
    """

    seen_layers: Sequence[AttentionLayer]
    plan_layers: Sequence[PlanLayer]

    def __init__(
        self, *, num_items: int, slate_size: int, action_dim: int, context: int, frames: int, item_dim: int,
        width: int, depth: int, heads: int, conditional: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.item_embeddings = nn.Parameter(torch.randn(num_items, item_dim))
        self.embed_frame = Linear(slate_size * (item_dim + 1) + action_dim, width)
        self.seen_layers = nn.ModuleList(AttentionLayer(width, heads, context, Linear) for _ in range(depth))  # type: ignore[assignment] # it is a sequence
        self.seen_norm = nn.LayerNorm(width)
        self.seen_place = nn.Parameter(0.02 * torch.randn(context, width))
        self.embed_plan = Linear(action_dim + 1, width)
        self.place = nn.Parameter(0.02 * torch.randn(frames, width))
        self.embed_step = StepEmbedding()
        self.widen_step = nn.Linear(TIME_DIM, width)
        self.embed_condition = mish_mlp(1, [width], width) if conditional else None
        self.plan_layers = nn.ModuleList(PlanLayer(width, heads) for _ in range(depth))  # type: ignore[assignment] # it is a sequence
        self.last_modulation = zeros(nn.Linear(width, 2 * width))
        self.last = zeros(nn.Linear(width, action_dim + 1))

    def read(self, context: Context, actions: Tensor) -> Seen:
        """Read K seen frames and their actions [B, K, A]."""
        items = embedding(context.slates.long(), self.item_embeddings)
        slots = torch.cat([items, context.clicks.unsqueeze(3).to(items.dtype)], dim=3).flatten(2)
        seen = gelu(self.embed_frame(torch.cat([slots, actions], dim=2))) + self.seen_place
        place = torch.arange(seen.shape[1], device=seen.device)
        back = place.unsqueeze(1) - place  # [K, K], frames from a query back to a key
        hidden = context.turn < 0
        # A frame attends to itself and to earlier frames of the episode. Padding attends to itself alone.
        unseen = (back < 0) | (hidden.unsqueeze(1) & (back != 0))  # [B, K, K]
        for layer in self.seen_layers:
            queries, pairs = layer.project(seen)
            bias = layer.bias[:, back.clamp(min=0)].masked_fill(unseen.unsqueeze(1), -torch.inf)
            seen = layer.after(seen, layer.attend(queries, pairs, bias))
        seen = self.seen_norm(seen)
        return Seen([layer.pairs(seen) for layer in self.plan_layers], hidden)

    def forward(
        self, seen: Seen, noisy: Tensor, step: Tensor, condition: Condition | None, beyond: Tensor | None = None
    ) -> Tensor:
        """Return the noise [B, n, F, A + 1] in noisy plans [B, n, F, A + 1].

        Args:
            seen: what `read` returned.
            step: [] or [B, 1], step of the diffusion.
            condition: None for a network that is not conditional.
            beyond: [B, F] planned frames after the session's end; None: no frame.
        """
        guide = self.widen_step(self.embed_step(step))  # [..., W]
        if self.embed_condition is not None and condition is not None:
            asked = self.embed_condition(condition.value.unsqueeze(2))
            guide = guide + asked * condition.known.unsqueeze(2)
        guide = mish(guide).expand(*(1,) * (3 - guide.ndim), *guide.shape)  # [B or 1, n or 1, W]
        plans = self.embed_plan(noisy) + self.place
        for layer, pairs in zip(self.plan_layers, seen.pairs, strict=True):
            plans = layer(plans, guide, pairs, seen.hidden, beyond)
        shift, scale = self.last_modulation(guide).unsqueeze(2).chunk(2, dim=3)
        return self.last(modulated(plans, shift, scale))


def modulated(rows: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise rows [..., W], then scale them by 1 + scale and shift them."""
    return torch.addcmul(shift, layer_norm(rows, rows.shape[-1:]), 1 + scale)


def zeros(layer: nn.Linear) -> nn.Linear:
    """Set a layer's weights and biases to zero, so that its blocks start as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
