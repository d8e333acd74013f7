"""A belief that reads slates and clicks with a GRU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from slaterl.beliefs.recurrent import RecurrentBelief
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.layers import first_derivative_only, outer, product


class GRUBelief(RecurrentBelief):
    """Belief state h_t [B, H] after observations 0..t, as of torch.nn.GRU. Its memory is the state."""

    GATES: ClassVar = 3  # reset, update, new

    def step(self, observation: Observation | PrivilegedObservation, memory: Tensor) -> Tensor:
        inputs = self.inputs_of(observation)
        return torch.gru_cell(inputs, memory, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)

    @staticmethod
    def scan(gates: Tensor, start: Sequence[Tensor], weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
        return gru_scan(gates, start[0], weight_hh, bias_hh)


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
