"""A policy that keeps a plan for each user."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slaterl.agents.base import BeliefPolicy
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.rollout import Decision

if TYPE_CHECKING:  # it returns this policy
    from slaterl.agents.offline.decision_diffuser import DecisionDiffuser


class PlanningPolicy(BeliefPolicy):
    """Play the first frames of each user's plan, then plan again from what is left of it.

    The last plan is moved to the present, and its last frame stands for those that it lacks. Then it gets noise and
    loses it again in `warm_steps` steps.
    """

    agent: DecisionDiffuser

    def reset(self, num_users: int) -> None:
        super().reset(num_users)
        self.plans: Tensor | None = None  # [B, F, A + 1]
        self.played = 0  # frames of the plans

    def act(self, observation: Observation | PrivilegedObservation, deterministic: bool) -> Decision:
        self.read(observation)
        generator = None if deterministic else self.generator
        if self.plans is None or self.played == self.agent.replan_every:
            self.plans, self.played = self.agent.plan(self.state, generator, self.expected()), 0
        action = self.agent.actions_of(self.plans)[:, self.played]
        self.played += 1
        return self.agent.decided(action, generator)

    def expected(self) -> Tensor | None:
        """Return what is left of the plans, [B, F, A + 1]; None if the next plan starts from noise."""
        if self.plans is None or self.agent.warm_steps is None:
            return None
        left = self.plans[:, self.played :]
        return torch.cat([left, self.plans[:, -1:].expand(-1, self.played, -1)], dim=1)
