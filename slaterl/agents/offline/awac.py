"""AWAC: the policy imitates the data's actions, weighted by how much better than its own they are.

Nair et al., "AWAC: Accelerating Online Reinforcement Learning with Offline Datasets", arXiv 2006.09359.
"""

from __future__ import annotations

from typing import Any

import torch

from slaterl.agents.offline.base import OfflineActorCritic, PolicyStep, Turns
from slaterl.errors import check_positive
from slaterl.networks import log_prob_of

LARGEST_WEIGHT = 100.0


class AWAC(OfflineActorCritic):
    """-log pi(a) * min(exp(A / lam), 100), A = min Q(s, a) - min Q(s, a_pi). No entropy in the target.

    Args:
        temperature: lam.
        others: see OfflineActorCritic.
    """

    def __init__(self, *, temperature: float, **common: Any) -> None:
        check_positive(**{"agent.temperature": temperature})
        super().__init__(**common)
        self.temperature = temperature

    def actor_loss(self, turns: Turns) -> PolicyStep:
        with torch.no_grad():
            action, _ = self.sample(turns.actor_state)
            own = self.q_values(self.critics, turns.critic_state, action).amin(0)
            advantage = self.q_values(self.critics, turns.critic_state, turns.action).amin(0) - own
            weight = (advantage / self.temperature).exp().clamp(max=LARGEST_WEIGHT)
        return PolicyStep(-(weight * log_prob_of(self.actor(turns.actor_state), turns.action)).mean(), action, own)
