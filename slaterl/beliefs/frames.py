"""What beliefs have in common that read frames: the slates shown and their clicks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, gelu, linear

from slaterl.beliefs.base import Belief
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.layers import layers

FRAMES_PER_ITEM = 6  # measured: from here on, a table of what each item adds is faster


def uniform(bound: float, *shape: int) -> nn.Parameter:
    """Make a parameter of draws from U(-bound, bound)."""
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class FrameBelief(Belief):
    """A belief with its own item embeddings. The input x of a turn is the item embedding and the click of each slot.

    Args:
        item_dim: E, width of the item embeddings (initialised from N(0, 1), learned).
        shared: see Belief.

    Attributes:
        weight_ih, bias_ih: the first layer, weight_ih x + bias_ih, [O, S * (E + 1)] and [O]. A subclass makes them.
    """

    weight_ih: nn.Parameter
    bias_ih: nn.Parameter

    def __init__(self, num_items: int, item_dim: int, state_dim: int, shared: bool) -> None:
        super().__init__()
        self.state_dim, self.shared = state_dim, shared
        self.item_embeddings = nn.Parameter(torch.randn(num_items, item_dim))

    def initial_state(self, num_users: int) -> Tensor:
        """Return the memory before the first observation, zeros [B, memory]."""
        return self.weight_ih.new_zeros(num_users, self.memory_dim)

    @classmethod
    def read(cls, beliefs: Sequence[FrameBelief], batch: Trajectories) -> Tensor:  # type: ignore[override] # see states_of
        batch = batch.blanked()  # so that not even the order of the sums in a gradient depends on padding
        return cls.unroll(beliefs, batch.slates[:, :-1], batch.clicks[:, :-1])

    @classmethod
    def unroll(cls, beliefs: Sequence[FrameBelief], slates: Tensor, clicks: Tensor) -> Tensor:
        """Return the states of n beliefs after each of T frames, [n, B, T, state]; slates and clicks are [B, T, S]."""
        raise NotImplementedError

    def inputs_of(self, observation: Observation | PrivilegedObservation) -> Tensor:
        """Return x of one frame of B users, [B, S * (E + 1)]."""
        items = self.item_embeddings.index_select(0, observation.slate.reshape(-1).long())
        items = items.view(*observation.slate.shape, -1)  # [B, S, E]
        return torch.cat([items, observation.clicks.unsqueeze(2).to(items.dtype)], dim=2).flatten(1)

    @property
    def weights_by_slot(self) -> tuple[Tensor, Tensor]:
        """The input weights of the items [O, S, E] and of the clicks [O, S]."""
        by_slot = self.weight_ih.unflatten(1, (-1, self.item_embeddings.shape[1] + 1))
        return by_slot[..., :-1], by_slot[..., -1]


class EmbeddedFrames(FrameBelief):
    """A belief whose first layer embeds each frame as gelu(W x + b), [W]. A subclass gives `over` and `step`.

    The gelu lets an embedding say which items were clicked, which a linear map of items and clicks cannot.

    Args:
        width: W, of an embedding.
    """

    def __init__(self, num_items: int, slate_size: int, item_dim: int, width: int, shared: bool) -> None:
        super().__init__(num_items, item_dim, width, shared)
        inputs = slate_size * (item_dim + 1)
        bound = 1 / math.sqrt(inputs)  # as in torch.nn.Linear
        self.weight_ih, self.bias_ih = uniform(bound, width, inputs), uniform(bound, width)

    def embed(self, observation: Observation | PrivilegedObservation) -> Tensor:
        """Embed one frame of B users, [B, W]."""
        return gelu(linear(self.inputs_of(observation), self.weight_ih, self.bias_ih))

    def over(self, embedded: Tensor) -> Tensor:
        """Return the states [T, B, state] after each of T embedded frames [T, B, W]."""
        raise NotImplementedError

    @classmethod
    def unroll(cls, beliefs: Sequence[EmbeddedFrames], slates: Tensor, clicks: Tensor) -> Tensor:  # type: ignore[override] # see states_of
        embedded = gelu(first_layers(beliefs, slates.transpose(0, 1), clicks.transpose(0, 1)))
        parts = zip(beliefs, embedded.chunk(len(beliefs), dim=2), strict=True)
        return torch.stack([belief.over(part) for belief, part in parts]).transpose(1, 2)


def first_layers(beliefs: Sequence[FrameBelief], slates: Tensor, clicks: Tensor, gates: int = 1) -> Tensor:
    """Return W_ih x + b_ih of n beliefs side by side, [T, B, n * O].

    An item in a slot always adds the same O numbers. With many frames it pays to compute them once for each item and
    slot, and to add rows of this table. With few frames it pays to compute only those that occur.

    Args:
        slates, clicks: [T, B, S].
        gates: number of gates among the O numbers. The beliefs stand side by side in each of them.

    Raises:
        RuntimeError or IndexError: an item id is out of range. A GPU stops with an assertion, as in any look-up.
    """
    turns, users, slots = slates.shape
    items = slates.reshape(-1, slots).long()
    weights = [belief.weights_by_slot for belief in beliefs]
    num_items = len(beliefs[0].item_embeddings)
    parts = []  # of the items and the bias
    if len(items) >= FRAMES_PER_ITEM * num_items:
        for belief, (of_items, _) in zip(beliefs, weights, strict=True):
            table = belief.item_embeddings @ of_items.permute(1, 2, 0) + belief.bias_ih / slots
            parts.append(table.flatten(0, 1))  # [S * N, O]
        places = items + num_items * torch.arange(slots, device=items.device)
        # an id out of range would silently read the row of another slot
        places = places.masked_fill(items != items.clamp(0, num_items - 1), -1)
        of_slates = embedding_bag(places, side_by_side(parts, gates, dim=1), mode="sum")
    else:
        for belief, (of_items, _) in zip(beliefs, weights, strict=True):
            inputs = belief.item_embeddings.index_select(0, items.flatten()).view(len(items), -1)  # [T * B, S * E]
            parts.append(layers([inputs], [of_items.flatten(1), belief.bias_ih]))
        of_slates = side_by_side(parts, gates, dim=1)
    clicked = clicks.reshape(-1, slots).to(of_slates.dtype)
    of_clicks = side_by_side([of_click for _, of_click in weights], gates)
    return torch.addmm(of_slates, clicked, of_clicks.t()).view(turns, users, -1)


def side_by_side(parts: Sequence[Tensor], gates: int, dim: int = 0) -> Tensor:
    """Join a dimension of gates * H, gate by gate: n tensors [..., gates * H, ...] -> [..., gates * nH, ...]."""
    return torch.stack([part.unflatten(dim, (gates, -1)) for part in parts], dim + 1).flatten(dim, dim + 2)
