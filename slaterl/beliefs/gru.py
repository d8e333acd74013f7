"""A belief that reads slates and clicks with a GRU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from slaterl.beliefs.base import Belief
from slaterl.bounds import Count
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.layers import first_derivative_only, layers, outer, product

FRAMES_PER_ITEM = 6  # measured: from here on, a table of all items' input gates is faster


class GRUBelief(Belief):
    """Belief state h_t [B, H] after observations 0..t, with its own item embeddings.

    The input of turn t is the item embedding and the click of each slot, S * (E + 1) numbers. Equations, parameter
    names, shapes and initialisation match torch.nn.GRU.

    Args:
        item_dim: E, width of the item embeddings (initialised from N(0, 1), learned).
        hidden_dim: H, width of the state.
    """

    def __init__(self, *, num_items: int, slate_size: int, item_dim: Count, hidden_dim: Count) -> None:
        super().__init__()
        self.state_dim = hidden_dim
        bound = 1 / math.sqrt(hidden_dim)

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.item_embeddings = nn.Parameter(torch.randn(num_items, item_dim))
        self.weight_ih = uniform(3 * hidden_dim, slate_size * (item_dim + 1))
        self.weight_hh = uniform(3 * hidden_dim, hidden_dim)
        self.bias_ih = uniform(3 * hidden_dim)
        self.bias_hh = uniform(3 * hidden_dim)

    def initial_state(self, num_users: int) -> Tensor:
        """Return the state [B, H] before the first observation."""
        return self.weight_hh.new_zeros(num_users, self.state_dim)

    def step(self, observation: Observation | PrivilegedObservation, state: Tensor) -> Tensor:
        items = self.item_embeddings.index_select(0, observation.slate.reshape(-1).long())
        items = items.view(*observation.slate.shape, -1)  # [B, S, E]
        inputs = torch.cat([items, observation.clicks.unsqueeze(2).to(items.dtype)], dim=2).flatten(1)
        return torch.gru_cell(inputs, state, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)

    @classmethod
    def read(cls, beliefs: Sequence[GRUBelief], batch: Trajectories) -> Tensor:  # type: ignore[override] # see states_of
        batch = batch.blanked()  # so that not even the order of the sums in a gradient depends on padding
        return unroll(beliefs, batch.slates[:, :-1], batch.clicks[:, :-1])

    def forward(self, slates: Tensor, clicks: Tensor, state: Tensor | None = None) -> Tensor:
        """Return the states [B, T, H] after each of T frames of B trajectories (slates and clicks [B, T, S])."""
        return unroll([self], slates, clicks, state)[0]

    @property
    def weights_by_slot(self) -> tuple[Tensor, Tensor]:
        """The input weights of the items [3H, S, E] and of the clicks [3H, S]."""
        by_slot = self.weight_ih.unflatten(1, (-1, self.item_embeddings.shape[1] + 1))
        return by_slot[..., :-1], by_slot[..., -1]


def unroll(beliefs: Sequence[GRUBelief], slates: Tensor, clicks: Tensor, state: Tensor | None = None) -> Tensor:
    """Return the states of n beliefs of one size over the same frames, [n, B, T, H], in one scan.

    n GRUs of H units are one GRU of n * H units with block-diagonal recurrent weights. The cost of a scan depends on
    the number of its operations and hardly on their size, so two beliefs take as long as one.

    Args:
        slates, clicks: [B, T, S].
        state: [B, H] to start from; zeros if not given.
    """
    count, hidden_dim = len(beliefs), beliefs[0].state_dim
    weights = [belief.weight_hh.unflatten(0, (3, hidden_dim)) for belief in beliefs]
    weight_hh = torch.cat([torch.block_diag(*(weight[gate] for weight in weights)) for gate in range(3)])
    bias_hh = _side_by_side([belief.bias_hh for belief in beliefs])
    if state is None:
        state = beliefs[0].initial_state(len(slates))
    gates = input_gates(beliefs, slates.transpose(0, 1), clicks.transpose(0, 1))
    states = gru_scan(gates, state.repeat(1, count), weight_hh, bias_hh)
    return states.unflatten(2, (count, hidden_dim)).permute(2, 1, 0, 3)


def input_gates(beliefs: Sequence[GRUBelief], slates: Tensor, clicks: Tensor) -> Tensor:
    """Return the part of the gates that depends on the input, W_ih x + b_ih, of n beliefs: [T, B, 3nH], gate by gate.

    An item in a slot always adds the same 3H numbers. With many frames it pays to compute them once for each item and
    slot, and to add rows of this table. With few frames it pays to compute only those that occur.

    Args:
        slates, clicks: [T, B, S].
    """
    turns, users, slots = slates.shape
    items = slates.reshape(-1, slots).long()
    weights = [belief.weights_by_slot for belief in beliefs]
    num_items = len(beliefs[0].item_embeddings)
    parts = []  # of the items and the bias
    if len(items) >= FRAMES_PER_ITEM * num_items:
        for belief, (of_items, _) in zip(beliefs, weights, strict=True):
            table = belief.item_embeddings @ of_items.permute(1, 2, 0) + belief.bias_ih / slots
            parts.append(table.flatten(0, 1))  # [S * N, 3H]
        places = items + num_items * torch.arange(slots, device=items.device)
        of_slates = embedding_bag(places, _side_by_side(parts, dim=1), mode="sum")
    else:
        for belief, (of_items, _) in zip(beliefs, weights, strict=True):
            inputs = belief.item_embeddings.index_select(0, items.flatten()).view(len(items), -1)  # [T * B, S * E]
            parts.append(layers([inputs], [of_items.flatten(1), belief.bias_ih]))
        of_slates = _side_by_side(parts, dim=1)
    clicked = clicks.reshape(-1, slots).to(of_slates.dtype)
    of_clicks = _side_by_side([of_click for _, of_click in weights])
    return torch.addmm(of_slates, clicked, of_clicks.t()).view(turns, users, -1)


def _side_by_side(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join a dimension of 3H, gate by gate: n tensors [..., 3H, ...] -> [..., 3nH, ...]."""
    return torch.stack([part.unflatten(dim, (3, -1)) for part in parts], dim + 1).flatten(dim, dim + 2)


def gru_scan(gates: Tensor, start: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
    """Return the hidden states [T, B, H] of a GRU.

    Args:
        gates: the part of the gates that depends on the input, [T, B, 3H] (order: reset, update, new).
        start: [B, H]; weight_hh: [3H, H]; bias_hh: [3H].
    """
    if torch.is_grad_enabled():
        return _GRUScan.apply(gates, start, weight_hh, bias_hh)
    return _scan(gates, start, weight_hh, bias_hh)


def _scan(gates: Tensor, start: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
    """Compute h_t = n + z * (h_{t-1} - n), with r, z = sigmoid(...), n = tanh(x_n + r * (W_hn h_{t-1} + b_hn)).

    The number of small operations determines the cost. So all of them write into the same few buffers, and a turn
    cuts only its own slices. Returns the states [T, B, H].
    """
    hidden_dim = start.shape[1]
    two = 2 * hidden_dim
    states = gates.new_empty(*gates.shape[:2], hidden_dim)
    recurrent, activated = torch.empty_like(gates[0]), torch.empty_like(gates[0])  # W_hh h_{t-1} + b_hh; r, z, n
    h_rz, h_n = recurrent[:, :two], recurrent[:, two:]
    rz, n = activated[:, :two], activated[:, two:]
    r, z = rz[:, :hidden_dim], rz[:, hidden_dim:]
    weight = weight_hh.t().contiguous()
    state = start
    for x_rz, x_n, out in zip(gates[..., :two].unbind(), gates[..., two:].unbind(), states.unbind(), strict=True):
        torch.addmm(bias_hh, state, weight, out=recurrent)
        torch.add(x_rz, h_rz, out=rz).sigmoid_()
        torch.addcmul(x_n, r, h_n, out=n).tanh_()
        state = torch.lerp(n, state, z, out=out)
    return states


class _GRUScan(torch.autograd.Function):
    """The recurrence with a hand-written backward pass.

    Autograd through 100 turns of small operations, or torch.nn.GRU on the CPU, spends most of the time of an update
    on overhead. Here the parts that do not depend on the carried gradient are computed for all turns at once. They
    include the gates, which take less time to compute again than to keep. The backward loop keeps four operations per
    turn.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, start: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
        states = _scan(gates, start, weight_hh, bias_hh)
        ctx.save_for_backward(gates, start, weight_hh, bias_hh, states)
        return states

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first_derivative_only("scan of the GRU")
        gates, start, weight_hh, bias_hh, states = ctx.saved_tensors
        hidden_dim = start.shape[1]
        previous = torch.cat([start.unsqueeze(0), states[:-1]])
        by_gate = (3, hidden_dim)
        inputs = gates.unflatten(2, by_gate).movedim(2, 0).contiguous()  # a gate's numbers side by side are faster
        recurrent = (
            product(previous.flatten(0, 1), weight_hh, bias_hh)
            .view_as(gates)
            .unflatten(2, by_gate)
            .movedim(2, 0)
            .contiguous()
        )
        reset, update = (inputs[:2] + recurrent[:2]).sigmoid_()
        new = torch.addcmul(inputs[2], reset, recurrent[2]).tanh_()
        # d h_t / d (pre-activation of each gate), for all turns at once
        d_new = torch.addcmul(torch.ones_like(new), new, new, value=-1).mul_(1 - update)
        # with respect to W_hh h + b_hh; the part of the new gate passes through the reset gate
        d_recurrent = d_new * reset
        d_reset = (d_recurrent * recurrent[2]).mul_(1 - reset)
        d_update = (previous - new).mul_(update).mul_(1 - update)
        grad_gates = torch.stack([d_reset, d_update, d_recurrent], dim=2)  # [T, B, 3, H]
        total = grad_states.clone(memory_format=torch.contiguous_format)  # with respect to h_t, after the loop
        carry = torch.zeros_like(start)
        turns = zip(
            total.unbind(),
            total.unsqueeze(2).unbind(),
            update.unbind(),
            grad_gates.unbind(),
            grad_gates.flatten(2).unbind(),
            strict=True,
        )
        for of_turn, spread, keep, of_gates, flat in reversed(list(turns)):
            of_turn.add_(carry)
            of_gates.mul_(spread)
            torch.mul(of_turn, keep, out=carry).addmm_(flat, weight_hh)
        rows = grad_gates.flatten(2).flatten(0, 1)  # [T * B, 3H]
        grad_weight, grad_bias = outer(rows, previous.flatten(0, 1)), rows.sum(0)
        torch.mul(
            total, d_new, out=grad_gates[:, :, 2]
        )  # the input of the new gate does not pass through the reset gate
        return grad_gates.flatten(2), carry, grad_weight, grad_bias
