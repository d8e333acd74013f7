"""AWAC: the policy imitates the recorded actions, weighted by their advantage over its own actions.

Nair et al., "AWAC: Accelerating Online Reinforcement Learning with Offline Datasets", arXiv 2006.09359.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from slaterl.agents.losses import advantage_weight
from slaterl.agents.offline.actor_critic import OfflineActorCritic
from slaterl.agents.offline.base import MakeBelief
from slaterl.bounds import Count, Fraction, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import LOG_STD_OF_DATA, gaussian_action, log_prob_of, mlp, polyak
from slaterl.rankers.base import Ranker


class AWAC(OfflineActorCritic):
    """The policy minimises -min(exp(A / lam), 100) * log pi(a|s), A = min Q(s, a) - min Q(s, a_pi).

    The target has no entropy.

    Args:
        temperature: lam.
        others: see OfflineActorCritic.
    """

    LEAST_LOG_STD: ClassVar = LOG_STD_OF_DATA

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        gamma: Fraction, reward_scale: Positive, tau: Fraction,
        q_lr: Positive, pi_lr: Positive, q_hidden: Widths, pi_hidden: Widths, num_critics: Count, layer_norm: bool,
        temperature: Positive,
    ) -> None:  # fmt: skip
        super().__init__(ranker, belief, generator, gamma, reward_scale, tau)
        self.temperature = temperature
        self.actor = mlp(self.state_dim, pi_hidden, 2 * self.action_dim)
        self.build_critics(num_critics, q_hidden, layer_norm)
        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        return gaussian_action(self.actor(state), generator, self.LEAST_LOG_STD)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of critics, policy and targets on B whole trajectories."""
        turns = self.turns(batch)

        # critics: y = r + gamma * min Q'(s', a'), a' ~ pi(s')
        with torch.no_grad():
            next_action, _ = self.sample(turns.actor_state[:, 1:])
            next_q = self.q_values(self.target_critics, turns.critic_state[:, 1:], next_action).amin(0)
            target = turns.target(next_q, self.gamma)
        q = self.q_values(self.critics, turns.critic_state, turns.action)
        critic_loss = turns.mean((q - target).square())

        # policy: -min(exp(A / lam), 100) * log pi(a|s)
        with torch.no_grad():
            action, _ = self.sample(turns.actor_state)
            policy_q = self.q_values(self.critics, turns.critic_state, action).amin(0)
            weight = advantage_weight((q.amin(0) - policy_q) / self.temperature)
        actor_loss = -turns.mean(weight * log_prob_of(self.actor(turns.actor_state), turns.action))

        self.descend(critic=critic_loss, actor=actor_loss)
        polyak(self.critics, self.target_critics, self.tau)
        self.record_policy(actor_loss, action, policy_q, turns)
        return self.terms(critic_loss, target, q, q_data=q.amin(0), turns=turns)
