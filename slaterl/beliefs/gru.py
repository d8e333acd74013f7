"""A belief that reads slates and clicks with a GRU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding, linear

from slaterl.beliefs.base import Belief
from slaterl.bounds import Count
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation


class GRUBelief(Belief):
    """Belief state h_t [B, H] after observations 0..t, with its own item embeddings.

    The input of turn t is the item embedding and the click of each slot, S * (E + 1) numbers. Equations, parameter
    names, shapes and initialisation match torch.nn.GRU. Training (`forward`) and acting (`step`) run the same
    code.

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
        return self(observation.slate.unsqueeze(1), observation.clicks.unsqueeze(1), state).squeeze(1)

    @classmethod
    def read(cls, beliefs: Sequence[GRUBelief], batch: Trajectories) -> Tensor:  # type: ignore[override] # see states_of
        return unroll(beliefs, batch.slates[:, :-1], batch.clicks[:, :-1])

    def forward(self, slates: Tensor, clicks: Tensor, state: Tensor | None = None) -> Tensor:
        """Return the states [B, T, H] after each of T frames of B trajectories (slates and clicks [B, T, S])."""
        return unroll([self], slates, clicks, state)[0]

    def input_gates(self, slates: Tensor, clicks: Tensor) -> Tensor:
        """Return the part of the gates that depends on the input, W_ih x + b_ih, [T, B, 3H]."""
        items = embedding(slates.long(), self.item_embeddings)  # [B, T, S, E]
        inputs = torch.cat([items, clicks.unsqueeze(3).to(items.dtype)], dim=3).flatten(2)
        return linear(inputs.transpose(0, 1), self.weight_ih, self.bias_ih)


def unroll(beliefs: Sequence[GRUBelief], slates: Tensor, clicks: Tensor, state: Tensor | None = None) -> Tensor:
    """Return the states of n beliefs of one size over the same frames, [n, B, T, H], in one scan.

    n GRUs of H units are one GRU of n * H units with block-diagonal recurrent weights. The cost of a scan depends on
    the number of its operations and hardly on their size, so two beliefs take as long as one.

    Args:
        slates, clicks: [B, T, S].
        state: [B, H] to start from; zeros if not given.
    """
    count, hidden_dim = len(beliefs), beliefs[0].state_dim
    by_gate = (3, hidden_dim)
    gates = torch.stack([belief.input_gates(slates, clicks).unflatten(2, by_gate) for belief in beliefs], dim=3)
    weights = [belief.weight_hh.unflatten(0, by_gate) for belief in beliefs]
    weight_hh = torch.cat([torch.block_diag(*(weight[gate] for weight in weights)) for gate in range(3)])
    bias_hh = torch.stack([belief.bias_hh.unflatten(0, by_gate) for belief in beliefs], dim=1).flatten()
    if state is None:
        state = beliefs[0].initial_state(len(slates))
    states = gru_scan(gates.flatten(2), state.repeat(1, count), weight_hh, bias_hh)
    return states.unflatten(2, (count, hidden_dim)).permute(2, 1, 0, 3)


def gru_scan(gates: Tensor, start: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
    """Return the hidden states [T, B, H] of a GRU.

    Args:
        gates: the part of the gates that depends on the input, [T, B, 3H] (order: reset, update, new).
        start: [B, H]; weight_hh: [3H, H]; bias_hh: [3H].
    """
    if torch.is_grad_enabled():
        return _GRUScan.apply(gates, start, weight_hh, bias_hh)
    return _scan(gates, start, weight_hh, bias_hh)[0]


def _scan(gates: Tensor, start: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute h_t = n + z * (h_{t-1} - n), with r, z = sigmoid(...), n = tanh(x_n + r * (W_hn h_{t-1} + b_hn)).

    The number of small operations determines the cost, so all of them write into slices that are cut beforehand.

    Returns the states [T, B, H], the gates r, z, n [T, B, 3H], and W_hh h_{t-1} + b_hh [T, B, 3H].
    """
    hidden_dim = start.shape[1]
    two = 2 * hidden_dim
    states = gates.new_empty(*gates.shape[:2], hidden_dim)
    activated, recurrent = torch.empty_like(gates), torch.empty_like(gates)
    weight = weight_hh.t().contiguous()
    state = start
    for x_rz, x_n, h, h_rz, h_n, rz, r, z, n, out in zip(
        gates[..., :two].unbind(),
        gates[..., two:].unbind(),
        recurrent.unbind(),
        recurrent[..., :two].unbind(),
        recurrent[..., two:].unbind(),
        activated[..., :two].unbind(),
        activated[..., :hidden_dim].unbind(),
        activated[..., hidden_dim:two].unbind(),
        activated[..., two:].unbind(),
        states.unbind(),
        strict=True,
    ):
        torch.addmm(bias_hh, state, weight, out=h)
        torch.add(x_rz, h_rz, out=rz).sigmoid_()
        torch.addcmul(x_n, r, h_n, out=n).tanh_()
        state = torch.lerp(n, state, z, out=out)
    return states, activated, recurrent


class _GRUScan(torch.autograd.Function):
    """The recurrence with a hand-written backward pass.

    Autograd through 100 turns of small operations, or torch.nn.GRU on the CPU, spends most of the time of an update
    on overhead. Here everything that does not depend on the carried gradient is computed for all turns at once. The
    backward loop keeps four operations per turn.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, start: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
        states, activated, recurrent = _scan(gates, start, weight_hh, bias_hh)
        ctx.save_for_backward(start, weight_hh, states, activated, recurrent)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        start, weight_hh, states, activated, recurrent = ctx.saved_tensors
        reset, update, new = activated.chunk(3, dim=2)
        recurrent_new = recurrent.chunk(3, dim=2)[2]
        previous = torch.cat([start.unsqueeze(0), states[:-1]])
        # d h_t / d (pre-activation of each gate), for all turns at once
        d_new = (1 - update) * (1 - new * new)
        d_update = (previous - new) * update * (1 - update)
        d_reset = d_new * recurrent_new * reset * (1 - reset)
        # with respect to W_hh h + b_hh; the part of the new gate passes through the reset gate
        factors = torch.stack([d_reset, d_update, d_new * reset], dim=2)  # [T, B, 3, H]
        grad_recurrent = torch.empty_like(factors)
        grad_total = torch.empty_like(states)  # with respect to h_t: from its direct use and from all later turns
        kept = torch.empty_like(start)
        carry = torch.zeros_like(start)
        turns = zip(
            grad_states.unbind(),
            factors.unbind(),
            update.unbind(),
            grad_recurrent.unbind(),
            grad_recurrent.flatten(2).unbind(),
            grad_total.unbind(),
            grad_total.unsqueeze(2).unbind(),
            strict=True,
        )
        for grad, factor, keep, by_gate, flat, total, spread in reversed(list(turns)):
            torch.add(grad, carry, out=total)
            torch.mul(spread, factor, out=by_gate)
            torch.mul(total, keep, out=kept)
            carry = torch.addmm(kept, flat, weight_hh)
        grad_recurrent = grad_recurrent.flatten(2)  # [T, B, 3H]
        two = 2 * start.shape[1]
        grad_gates = torch.cat([grad_recurrent[..., :two], grad_total * d_new], dim=2)
        rows = grad_recurrent.flatten(0, 1)  # [T * B, 3H]
        return grad_gates, carry, rows.t() @ previous.flatten(0, 1), rows.sum(0)
