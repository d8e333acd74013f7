"""GFN4Rec in the simulator: see slaterl/agents/list_flow.py."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from slaterl.agents.list_flow import ListFlow
from slaterl.agents.online.dqn import decaying
from slaterl.bounds import Fraction, Positive
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.rollout import Decision


class GFN4Rec(ListFlow):
    """ListFlow that collects its own slates: draws from P, and with probability epsilon a uniform slate.

    Args:
        epsilon_start, epsilon_end, epsilon_decay: epsilon at step t is end + (start - end) * exp(-t / decay).
        others: see ListFlow.
    """

    TERMS: ClassVar = (*ListFlow.TERMS, "policy/epsilon")

    def __init__(
        self, *, epsilon_start: Fraction, epsilon_end: Fraction, epsilon_decay: Positive, **others: Any
    ) -> None:
        super().__init__(**others)
        self.epsilon_start, self.epsilon_end, self.epsilon_decay = epsilon_start, epsilon_end, epsilon_decay

    @property
    def epsilon(self) -> float:
        """Probability of a uniform slate at this step."""
        return decaying(self.epsilon_start, self.epsilon_end, self.epsilon_decay, self.step)

    def decide(
        self, state: Tensor, observation: Observation | PrivilegedObservation, generator: torch.Generator | None
    ) -> Decision:
        if generator is None:
            return Decision(self.fill(state, None))
        uniform = torch.rand(len(state), 1, generator=generator, device=state.device) < self.epsilon
        return Decision(self.fill(state, generator, uniform))

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        terms = super().update(batch)
        return {**terms, "policy/epsilon": terms["loss/actor"].new_full((), self.epsilon)}
