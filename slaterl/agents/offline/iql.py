"""IQL: values of the data's own actions, the better of them by expectiles; the policy imitates what was better.

Kostrikov et al., "Offline Reinforcement Learning with Implicit Q-Learning", arXiv 2110.06169.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from slaterl.agents.offline.base import OfflineActorCritic, PolicyStep, Turns
from slaterl.errors import check_counts, check_range
from slaterl.networks import log_prob_of, mlp

LARGEST_WEIGHT = 100.0


class IQL(OfflineActorCritic):
    """V: the tau_e-expectile of min Q'(s, a); Q: r + gamma * V(s'); policy: -min(exp(beta * A), 100) * log pi(a).

    The critics' belief carries V as well.

    Args:
        expectile: tau_e; beta: inverse temperature of the policy's weights.
        decay_steps: updates over which the policy's learning rate falls to zero, by a cosine.
        others: see OfflineActorCritic.
    """

    FIRST_CRITIC: ClassVar = True

    def __init__(self, *, expectile: float, beta: float, decay_steps: int, **common: Any) -> None:
        check_range(0, 1, **{"agent.expectile": expectile})
        check_range(0, float("inf"), **{"agent.beta": beta})
        check_counts(**{"agent.decay_steps": decay_steps})
        super().__init__(**common)
        self.expectile, self.beta, self.decay_steps, self.pi_lr = expectile, beta, decay_steps, common["pi_lr"]
        self.value = mlp(self.critic_belief.state_dim, common["q_hidden"], 1)
        self.add_optimizer("critic", self.critics, self.value, self.critic_belief, lr=common["q_lr"])

    def update(self, batch: Any) -> dict[str, Tensor]:
        progress = min(self.step / self.decay_steps, 1.0)
        self.optim["actor"].param_groups[0]["lr"] = self.pi_lr * (1 + math.cos(math.pi * progress)) / 2
        return super().update(batch)

    def next_value(self, turns: Turns) -> Tensor:
        return self.value(turns.critic_state[:, 1:]).squeeze(-1)

    def further_loss(self, turns: Turns, q: Tensor) -> Tensor:
        """Mean of |tau_e - [u < 0]| * u^2, u = min Q'(s, a) - V(s)."""
        with torch.no_grad():
            target = self.q_values(self.target_critics, turns.critic_state, turns.action).amin(0)
        difference = target - self.value(turns.critic_state).squeeze(-1)
        weight = (self.expectile - (difference.detach() < 0).float()).abs()
        return (weight * difference.square()).mean()

    def actor_loss(self, turns: Turns) -> PolicyStep:
        parameters = self.actor(turns.actor_state)
        with torch.no_grad():
            q = self.q_values(self.target_critics, turns.critic_state, turns.action).amin(0)
            advantage = q - self.value(turns.critic_state).squeeze(-1)
            weight = (self.beta * advantage).exp().clamp(max=LARGEST_WEIGHT)
            action = parameters.chunk(2, dim=-1)[0].tanh()
            of_policy = self.first_q(turns.critic_state, action)
        return PolicyStep(-(weight * log_prob_of(parameters, turns.action)).mean(), action, of_policy)
