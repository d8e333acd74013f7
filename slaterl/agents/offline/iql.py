"""IQL: values of recorded actions only, by expectile regression; the policy imitates the better actions.

Kostrikov et al., "Offline Reinforcement Learning with Implicit Q-Learning", arXiv 2110.06169.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from slaterl.agents.losses import advantage_weight, expectile_loss
from slaterl.agents.offline.actor_critic import OfflineActorCritic
from slaterl.agents.offline.base import MakeBelief
from slaterl.bounds import Count, Fraction, NonNegative, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import LOG_STD_OF_DATA, gaussian_action, log_prob_of, mlp, polyak
from slaterl.rankers.base import Ranker


class IQL(OfflineActorCritic):
    """Critics and a value V, which never see an action of the policy, and a policy by weighted cloning.

    V minimises the tau_e-expectile loss |tau_e - [u < 0]| * u^2, u = min Q'(s, a) - V(s) (equation 5). Q minimises
    (r + gamma * V(s') - Q)^2 (equation 6), the policy -min(exp(beta * u), 100) * log pi(a|s) (equation 7). V reads the
    critics' belief and learns with the critics' optimiser.

    Args:
        expectile: tau_e.
        beta: inverse temperature of the policy's weights.
        decay_steps: updates until a cosine schedule takes the policy's learning rate to zero.
        others: see OfflineActorCritic.
    """

    LEAST_LOG_STD: ClassVar = LOG_STD_OF_DATA

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        gamma: Fraction, reward_scale: Positive, tau: Fraction,
        q_lr: Positive, pi_lr: Positive, q_hidden: Widths, pi_hidden: Widths, num_critics: Count, layer_norm: bool,
        expectile: Fraction, beta: NonNegative, decay_steps: Count,
    ) -> None:  # fmt: skip
        super().__init__(ranker, belief, generator, gamma, reward_scale, tau)
        self.expectile, self.beta, self.decay_steps, self.pi_lr = expectile, beta, decay_steps, pi_lr
        self.actor = mlp(self.state_dim, pi_hidden, 2 * self.action_dim)
        self.build_critics(num_critics, q_hidden, layer_norm)
        self.value = mlp(self.state_dim, q_hidden, 1, layer_norm)
        self.add_optimizer("critic", self.critics, self.value, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        return gaussian_action(self.actor(state), generator, self.LEAST_LOG_STD)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of value, critics, policy and targets on B whole trajectories."""
        self.decay("actor", self.pi_lr, self.decay_steps)
        turns = self.turns(batch)

        # critics: y = r + gamma * V(s')
        with torch.no_grad():
            next_value = self.value(turns.critic_state[:, 1:]).squeeze(-1)
            target = turns.target(next_value, self.gamma)
        q = self.q_values(self.critics, turns.critic_state, turns.action)

        # value: |tau_e - [u < 0]| * u^2, u = min Q'(s, a) - V(s)
        with torch.no_grad():
            target_q = self.q_values(self.target_critics, turns.critic_state, turns.action).amin(0)
        advantage = target_q - self.value(turns.critic_state).squeeze(-1)
        critic_loss = turns.mean((q - target).square()) + turns.mean(expectile_loss(advantage, self.expectile))

        # policy: -min(exp(beta * u), 100) * log pi(a|s)
        parameters = self.actor(turns.actor_state)
        with torch.no_grad():
            weight = advantage_weight(self.beta * advantage)
            action = gaussian_action(parameters, None)
            policy_q = self.first_q(turns.critic_state, action)
        actor_loss = -turns.mean(weight * log_prob_of(parameters, turns.action))

        self.descend(critic=critic_loss, actor=actor_loss)
        polyak(self.critics, self.target_critics, self.tau)
        self.record_policy(actor_loss, action, policy_q, turns)
        return self.terms(critic_loss, target, q, q_data=q[0], turns=turns)
