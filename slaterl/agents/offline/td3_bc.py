"""TD3 + BC: TD3 whose policy is held to the data's actions.

Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement Learning", arXiv 2106.06860.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor

from slaterl.agents.offline.base import OfflineActorCritic, PolicyStep, Turns
from slaterl.errors import check_range
from slaterl.networks import polyak


class TargetPolicy(OfflineActorCritic):
    """A deterministic policy with a slow copy of itself, whose noisy actions are those of the critics' targets.

    Args:
        target_noise, noise_clip: deviation and bound of the noise on the target's actions.
        others: see OfflineActorCritic.
    """

    GAUSSIAN: ClassVar = False

    def __init__(self, *, target_noise: float, noise_clip: float, **common: Any) -> None:
        check_range(0, float("inf"), **{"agent.target_noise": target_noise, "agent.noise_clip": noise_clip})
        super().__init__(**common)
        self.target_noise, self.noise_clip = target_noise, noise_clip
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)

    def target_action(self, state: Tensor) -> Tensor:
        """clip(pi'(s) + clip(noise)) at belief states [..., state] -> [..., A] in [-1, 1]."""
        action = self.target_actor(state).tanh()
        noise = torch.randn(action.shape, generator=self.generators["update"], device=action.device)
        noise = (self.target_noise * noise).clamp(-self.noise_clip, self.noise_clip)
        return (action + noise).clamp(-1, 1)

    def next_value(self, turns: Turns) -> Tensor:
        action = self.target_action(turns.actor_state[:, 1:])
        return self.q_values(self.target_critics, turns.critic_state[:, 1:], action).amin(0)

    def move_targets(self) -> None:
        super().move_targets()
        polyak(self.actor, self.target_actor, self.tau)


class TD3BC(TargetPolicy):
    """The policy maximises lam * Q1 - squared error to the data's actions, lam = alpha / mean |Q1|.

    Args:
        alpha: weight of Q against imitation.
        others: see TargetPolicy.
    """

    FIRST_CRITIC: ClassVar = True

    def __init__(self, *, alpha: float, **common: Any) -> None:
        check_range(0, float("inf"), **{"agent.alpha": alpha})
        super().__init__(**common)
        self.alpha = alpha

    def actor_loss(self, turns: Turns) -> PolicyStep:
        action = self.actor(turns.actor_state).tanh()
        q = self.first_q(turns.critic_state, action)
        weight = self.alpha / q.detach().abs().mean()
        return PolicyStep(-weight * q.mean() + (action - turns.action).square().mean(), action, q)
