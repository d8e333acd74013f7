"""What the GRU and the LSTM have in common: gates, and several beliefs in one scan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from slaterl.beliefs.frames import FrameBelief, first_layers, side_by_side, uniform
from slaterl.bounds import Count


class RecurrentBelief(FrameBelief):
    """Belief state h_t [B, H] after observations 0..t. A subclass gives `GATES`, `scan` and `step`.

    Parameter names, shapes and initialisation match torch's modules.

    Args:
        item_dim: E, width of the item embeddings (initialised from N(0, 1), learned).
        hidden_dim: H, width of the state.
        shared: see Belief.
    """

    GATES: ClassVar[int]

    def __init__(
        self, *, num_items: int, slate_size: int, item_dim: Count, hidden_dim: Count, shared: bool = False
    ) -> None:
        super().__init__(num_items, item_dim, hidden_dim, shared)
        bound = 1 / math.sqrt(hidden_dim)
        self.weight_ih = uniform(bound, self.GATES * hidden_dim, slate_size * (item_dim + 1))
        self.weight_hh = uniform(bound, self.GATES * hidden_dim, hidden_dim)
        self.bias_ih = uniform(bound, self.GATES * hidden_dim)
        self.bias_hh = uniform(bound, self.GATES * hidden_dim)

    @staticmethod
    def scan(gates: Tensor, start: Sequence[Tensor], weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
        """Return the states [T, B, H].

        Args:
            gates: the part of the gates that depends on the input, [T, B, GATES * H].
            start: the parts of the memory, each [B, H]; weight_hh: [GATES * H, H]; bias_hh: [GATES * H].
        """
        raise NotImplementedError

    @classmethod
    def unroll(  # type: ignore[override] # see states_of
        cls, beliefs: Sequence[RecurrentBelief], slates: Tensor, clicks: Tensor, memory: Tensor | None = None
    ) -> Tensor:
        """Return the states of n beliefs of one size over the same frames, [n, B, T, H], in one scan.

        n networks of H units are one network of n * H units with block-diagonal recurrent weights. The cost of a scan
        depends on the number of its operations and hardly on their size, so two beliefs take as long as one.

        Args:
            slates, clicks: [B, T, S].
            memory: [B, memory] to start from; zeros if not given.
        """
        count, hidden_dim = len(beliefs), beliefs[0].state_dim
        weights = [belief.weight_hh.unflatten(0, (cls.GATES, hidden_dim)) for belief in beliefs]
        weight_hh = torch.cat([torch.block_diag(*(weight[gate] for weight in weights)) for gate in range(cls.GATES)])
        bias_hh = side_by_side([belief.bias_hh for belief in beliefs], cls.GATES)
        if memory is None:
            memory = beliefs[0].initial_state(len(slates))
        gates = first_layers(beliefs, slates.transpose(0, 1), clicks.transpose(0, 1), cls.GATES)
        start = [part.repeat(1, count) for part in memory.split(hidden_dim, dim=1)]
        states = cls.scan(gates, start, weight_hh, bias_hh)
        return states.unflatten(2, (count, hidden_dim)).permute(2, 1, 0, 3)

    def forward(self, slates: Tensor, clicks: Tensor, memory: Tensor | None = None) -> Tensor:
        """Return the states [B, T, H] after each of T frames of B trajectories (slates and clicks [B, T, S])."""
        return self.unroll([self], slates, clicks, memory)[0]
