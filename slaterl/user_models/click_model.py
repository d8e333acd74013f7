"""A user model: the probability of a click on each slot, given the history and the slate."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from slaterl.beliefs.gru import gru_scan
from slaterl.bounds import Count
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation
from slaterl.user_models.quality import departures

SMALL = 0.1  # deviation of embeddings at the start


class Logits(NamedTuple):
    """What a user model predicts for B sessions of H turns."""

    clicks: Tensor  # [B, H, S] of a click on each slot
    leaving: Tensor | None  # [B, H] of leaving after each turn; None if nobody leaves


class ClickModel(nn.Module):
    """A GRU reads the frames; its state h gives a taste u, and the slots of a slate attend to each other.

    With v_s the embedding of the item in slot s, u = W h, and * the product of two vectors entry by entry:

        z_s = Z [v_s, u * v_s] + rank vector_s

        logit_s = rank_s + item_s + <u, v_s> + <w, relu(z_s + sum_j softmax_j(<Q z_s, z_j> / sqrt A) V z_j)>

    The GRU reads the sum of the clicked items' embeddings, the sum of all shown ones, and the click of each slot.
    Embeddings start near zero, so an item that the data lack counts as an average one.

    Args:
        item_dim: E, width of the item embeddings v.
        hidden_dim: width of the GRU's state h.
        slot_dim: A, width of a slot's vector z.
        leaves: whether users may leave after a turn. If so, the logit of leaving is linear in the state after it.
    """

    def __init__(
        self, *, num_items: int, slate_size: int, item_dim: Count, hidden_dim: Count, slot_dim: Count, leaves: bool
    ) -> None:
        super().__init__()
        self.state_dim = hidden_dim
        self.items = nn.Parameter(SMALL * torch.randn(num_items, item_dim))
        self.cell = nn.GRUCell(2 * item_dim + slate_size, hidden_dim)
        self.taste = nn.Linear(hidden_dim, item_dim)
        self.slots = nn.Linear(2 * item_dim, slot_dim)
        self.ranks = nn.Parameter(SMALL * torch.randn(slate_size, slot_dim))
        self.query = nn.Linear(slot_dim, slot_dim, bias=False)
        self.value = nn.Linear(slot_dim, slot_dim, bias=False)
        self.interaction = nn.Linear(slot_dim, 1, bias=False)
        self.item_bias = nn.Parameter(torch.zeros(num_items))
        self.rank_bias = nn.Parameter(torch.zeros(slate_size))
        self.leaving = nn.Linear(hidden_dim, 1) if leaves else None

    @torch.no_grad()
    def start_at(self, rates: Tensor) -> None:
        """Begin with click rates [S] of the ranks, each kept off 0 and 1."""
        self.rank_bias.copy_(rates.logit(eps=1e-4))

    def initial_state(self, num_users: int) -> Tensor:
        """Return the states [B, hidden] before the first frame."""
        return self.items.new_zeros(num_users, self.state_dim)

    def step(self, observation: Observation, state: Tensor) -> Tensor:
        """Read one more frame into the states [B, hidden]."""
        return self.cell(self._inputs(self._embedded(observation.slate), observation.clicks), state)

    def click_logits(self, state: Tensor, slate: Tensor) -> Tensor:
        """Return the logits [B, S] of clicks on slates [B, S] in states [B, hidden]."""
        return self._clicks(state, slate, self._embedded(slate))

    def leave_logits(self, state: Tensor) -> Tensor | None:
        """Return the logits [...] of leaving, in states [..., hidden] that have read the last turn."""
        return None if self.leaving is None else self.leaving(state).squeeze(-1)

    def leave_chances(self, state: Tensor) -> Tensor:
        """Return the probabilities [...] of leaving, in states [..., hidden]; of a model whose users may leave."""
        logits = self.leave_logits(state)
        assert logits is not None
        return logits.sigmoid()

    def forward(self, data: Trajectories) -> Logits:
        """Predict every turn of B sessions in one pass. Turn t reads the frames 0..t and the slate of frame t + 1."""
        items = self._embedded(data.slates)  # [B, H + 1, S, E]
        gates = self._inputs(items, data.clicks).transpose(0, 1) @ self.cell.weight_ih.t() + self.cell.bias_ih
        start = self.initial_state(len(data))
        states = gru_scan(gates, start, self.cell.weight_hh, self.cell.bias_hh).transpose(0, 1)
        clicks = self._clicks(states[:, :-1], data.slates[:, 1:], items[:, 1:])
        return Logits(clicks, self.leave_logits(states[:, 1:]))

    def _embedded(self, slates: Tensor) -> Tensor:
        return self.items.index_select(0, slates.reshape(-1).long()).view(*slates.shape, -1)

    def _inputs(self, items: Tensor, clicks: Tensor) -> Tensor:
        clicked = clicks.to(items.dtype)
        return torch.cat([(items * clicked.unsqueeze(-1)).sum(-2), items.sum(-2), clicked], dim=-1)

    def _clicks(self, state: Tensor, slates: Tensor, items: Tensor) -> Tensor:
        """Logits [..., S] in states [..., hidden], for slates [..., S] with embedded items [..., S, E]."""
        taste = self.taste(state).unsqueeze(-2)
        liked = items * taste
        slots = (self.slots(torch.cat([items, liked], dim=-1)) + self.ranks).flatten(0, -3)  # [n, S, A]
        affinity = self.query(slots) @ slots.transpose(1, 2) / math.sqrt(slots.shape[2])
        mixed = torch.baddbmm(slots, affinity.softmax(2), self.value(slots))
        bias = self.item_bias.index_select(0, slates.reshape(-1).long())
        logits = liked.sum(-1) + bias.view(slates.shape) + self.interaction(mixed.relu()).view(slates.shape)
        return logits + self.rank_bias


def losses(logits: Logits, data: Trajectories) -> tuple[Tensor, Tensor]:
    """Return the binary cross-entropy of clicks, mean over impressions, and of leaving, mean over turns.

    Turns after a session's end do not count. Nor does leaving after the last turn of a session that was cut off.
    """
    clicks = data.clicks[:, 1:].to(logits.clicks.dtype)
    if data.lengths is None:
        click_loss = binary_cross_entropy_with_logits(logits.clicks, clicks)
    else:
        each = binary_cross_entropy_with_logits(logits.clicks, clicks, reduction="none").mean(2)
        click_loss = _mean(each, data.mask)
    if logits.leaving is None:
        return click_loss, torch.zeros_like(click_loss)
    left, known = departures(data)
    each = binary_cross_entropy_with_logits(logits.leaving, left.to(logits.leaving.dtype), reduction="none")
    return click_loss, _mean(each, known)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values [B, H] over a mask, 0 if it is empty. Values outside may be anything, also NaN."""
    return values.where(mask, 0.0).sum() / mask.sum().clamp(min=1)
