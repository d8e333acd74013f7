"""Soft actor-critic in the latent space of a ranker.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905; with the belief of
Deffayet et al. 2023: the actor and the critics each read trajectories through their own GRU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from slaterl.agents.base import LatentAgent
from slaterl.agents.losses import (
    bootstrap,
    continuing_turns,
    mean,
    soft_policy_loss,
    temperature_loss,
    valid_turns,
)
from slaterl.beliefs.base import Belief, for_actor_and_critics, states_of
from slaterl.bounds import Count, Fraction, NonNegative, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import Critics, frozen, gaussian_action, mlp, polyak, tanh_gaussian, target_of
from slaterl.rankers.base import Ranker


class SAC(LatentAgent):
    """Off-policy actor-critic with a tanh-Gaussian policy and a learned temperature alpha.

    Critics minimise (Q(s, a) - y)^2, y = r + gamma * (min Q'(s', a') - alpha * log pi(a'|s')) (equation 5). The policy
    minimises alpha * log pi(a|s) - min Q(s, a) (equation 7), and alpha keeps its entropy at a target (equation 18).
    Policy and log-probabilities live in [-1, 1]^A; the critics read actions in the ranker's latent units.

    Args:
        ranker: the ranker that the agent acts through, already trained.
        belief: makes a belief; called once for the actor and once for the critics.
        generator: random stream of the updates.
        gamma: discount.
        tau: Polyak rate of the target critics, applied at every update.
        q_lr, pi_lr, alpha_lr: Adam's learning rates of critics, policy (each with its belief) and temperature.
        q_hidden, pi_hidden: widths of the hidden layers of critics and policy.
        layer_norm: a layer norm after each ReLU of the critics. Checkpoints from before this setting lack it.
        num_critics: number of critics; targets and policy read their minimum.
        initial_alpha: temperature before the first update.
        target_entropy_scale: the target entropy is minus this times the action's dimension.
    """

    TERMS: ClassVar = (
        "loss/critic",
        "loss/actor",
        "loss/alpha",
        "value/q",
        "value/target",
        "policy/entropy",
        "policy/alpha",
    )

    def __init__(
        self,
        *,
        ranker: Ranker,
        belief: Callable[[], Belief],
        generator: torch.Generator,
        gamma: Fraction,
        tau: Fraction,
        q_lr: Positive,
        pi_lr: Positive,
        alpha_lr: Positive,
        q_hidden: Widths,
        pi_hidden: Widths,
        num_critics: Count,
        initial_alpha: Positive,
        target_entropy_scale: NonNegative,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(ranker)
        self.gamma, self.tau = gamma, tau
        self.target_entropy = -target_entropy_scale * ranker.action_dim
        self.generators["update"] = generator

        self.actor_belief, self.critic_belief = for_actor_and_critics(belief(), belief)
        state_dim = self.actor_belief.state_dim
        self.actor = mlp(state_dim, pi_hidden, 2 * ranker.action_dim)
        self.critics = Critics(num_critics, state_dim + ranker.action_dim, q_hidden, layer_norm)
        self.target_critics = target_of(self.critics)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial_alpha)))

        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)
        self.add_optimizer("alpha", self.log_alpha, lr=alpha_lr)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        return gaussian_action(self.actor(state), generator)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of critics, policy, temperature and targets on B whole trajectories."""
        assert batch.actions is not None
        mask, continuing = valid_turns(batch), continuing_turns(batch)
        generator, alpha = self.generators["update"], self.log_alpha.detach().exp()
        # One scan computes both beliefs, and each loss trains its own belief.
        critic_state, actor_state = states_of([self.critic_belief, self.actor_belief], batch)  # [B, H, state]
        gaussian = self.actor(actor_state)  # [B, H, 2A]

        # critics: y = r + gamma * (min Q'(s', a') - alpha * log pi(a'|s'))
        with torch.no_grad():
            next_action, next_log_prob = tanh_gaussian(gaussian[:, 1:], generator)
            next_q = self.q_values(self.target_critics, critic_state[:, 1:], next_action).amin(0)
            target = bootstrap(batch.rewards, next_q - alpha * next_log_prob, self.gamma, continuing)
        q = self.q_values(self.critics, critic_state, batch.actions)
        critic_loss = mean((q - target).square(), mask)

        # policy: alpha * log pi(a|s) - min Q(s, a); temperature: up while the entropy is below its target
        action, log_prob = tanh_gaussian(gaussian, generator)
        with frozen(self.critics):
            policy_q = self.q_values(self.critics, critic_state.detach(), action).amin(0)
        actor_loss = soft_policy_loss(alpha, log_prob, policy_q, mask)
        alpha_loss = temperature_loss(self.log_alpha, log_prob, self.target_entropy, mask)

        self.descend(critic=critic_loss, actor=actor_loss, alpha=alpha_loss)
        polyak(self.critics, self.target_critics, self.tau)
        return {
            "loss/critic": critic_loss,
            "loss/actor": actor_loss,
            "loss/alpha": alpha_loss,
            "value/q": mean(q, mask),
            "value/target": mean(target, mask),
            "policy/entropy": -mean(log_prob, mask),
            "policy/alpha": alpha,
        }
