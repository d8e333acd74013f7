"""A belief that reads slates and clicks with an LSTM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from slaterl.beliefs.recurrent import RecurrentBelief
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.layers import first_derivative_only, outer


class LSTMBelief(RecurrentBelief):
    """Belief state h_t [B, H] after observations 0..t, as of torch.nn.LSTM. Its memory is [h_t, c_t]."""

    GATES: ClassVar = 4  # input, forget, cell, output

    @property
    def memory_dim(self) -> int:
        return 2 * self.state_dim

    def step(self, observation: Observation | PrivilegedObservation, memory: Tensor) -> Tensor:
        inputs, parts = self.inputs_of(observation), memory.chunk(2, dim=1)
        return torch.cat(
            torch.lstm_cell(inputs, parts, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh), dim=1
        )

    @staticmethod
    def scan(gates: Tensor, start: Sequence[Tensor], weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
        hidden, cell = start
        return lstm_scan(gates + bias_hh, hidden, cell, weight_hh)


def lstm_scan(gates: Tensor, start: Tensor, start_cell: Tensor, weight_hh: Tensor) -> Tensor:
    """Return the hidden states [T, B, H] of an LSTM.

    Args:
        gates: the part of the gates that depends on the input, with all biases, [T, B, 4H] (input, forget, cell,
            output).
        start, start_cell: [B, H]; weight_hh: [4H, H].
    """
    if torch.is_grad_enabled():
        return _LSTMScan.apply(gates, start, start_cell, weight_hh)
    return _scan(gates, start, start_cell, weight_hh)[0]


def _scan(gates: Tensor, start: Tensor, start_cell: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute c_t = f * c_{t-1} + i * g and h_t = o * tanh(c_t), with i, f, o = sigmoid(...) and g = tanh(...).

    As in the GRU, the number of operations determines the cost, so they write into fixed buffers. Returns states and
    cells [T, B, H] and the activated gates [T, B, 4H].
    """
    hidden_dim = start.shape[1]
    states, cells = (gates.new_empty(*gates.shape[:2], hidden_dim) for _ in range(2))
    activated, squashed = torch.empty_like(gates), torch.empty_like(start)
    weight = weight_hh.t().contiguous()
    state, cell = start, start_cell
    for x, act, h, c in zip(gates.unbind(), activated.unbind(), states.unbind(), cells.unbind(), strict=True):
        torch.addmm(x, state, weight, out=act)
        i, f, g, o = act.split(hidden_dim, dim=1)
        act[:, : 2 * hidden_dim].sigmoid_()
        g.tanh_()
        o.sigmoid_()
        cell = torch.mul(f, cell, out=c).addcmul_(i, g)
        state = torch.mul(o, torch.tanh(cell, out=squashed), out=h)
    return states, cells, activated


class _LSTMScan(torch.autograd.Function):
    """The recurrence with a hand-written backward pass, for the reasons that the GRU's has one.

    What does not depend on the carried gradient is computed for all turns at once. Six operations per turn are left.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, start: Tensor, start_cell: Tensor, weight_hh: Tensor) -> Tensor:
        states, cells, activated = _scan(gates, start, start_cell, weight_hh)
        ctx.save_for_backward(start, start_cell, weight_hh, states, cells, activated)
        return states

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first_derivative_only("scan of the LSTM")
        start, start_cell, weight_hh, states, cells, activated = ctx.saved_tensors
        hidden_dim = start.shape[1]
        i, f, g, o = activated.split(hidden_dim, dim=2)
        f = f.contiguous()
        squashed = cells.tanh()
        # d c_t / d (pre-activation) of the first three gates, d h_t / d (pre-activation) of the last, for all turns
        d_input = g * i * (1 - i)
        d_forget = torch.cat([start_cell.unsqueeze(0), cells[:-1]]) * f * (1 - f)
        d_new = i * (1 - g.square())
        d_output = squashed * o * (1 - o)
        grad_gates = torch.stack([d_input, d_forget, d_new, d_output], dim=2)  # [T, B, 4, H]
        to_cell = o * (1 - squashed.square())  # d h_t / d c_t
        total = grad_states.clone(memory_format=torch.contiguous_format)  # with respect to h_t, after the loop
        carry, carry_cell, of_cell = (torch.zeros_like(start) for _ in range(3))
        turns = zip(
            total.unbind(),
            to_cell.unbind(),
            f.unbind(),
            grad_gates[:, :, :3].unbind(),
            grad_gates[:, :, 3].unbind(),
            grad_gates.flatten(2).unbind(),
            strict=True,
        )
        for of_turn, through, keep, of_first, of_output, flat in reversed(list(turns)):
            of_turn.add_(carry)
            torch.addcmul(carry_cell, of_turn, through, out=of_cell)
            of_first.mul_(of_cell.unsqueeze(1))
            of_output.mul_(of_turn)
            torch.mul(of_cell, keep, out=carry_cell)
            torch.mm(flat, weight_hh, out=carry)
        flat_gates = grad_gates.flatten(2)
        previous = torch.cat([start.unsqueeze(0), states[:-1]])
        return flat_gates, carry, carry_cell, outer(flat_gates.flatten(0, 1), previous.flatten(0, 1))
