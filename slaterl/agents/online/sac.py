"""Soft actor-critic in the latent space of a ranker.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905; with the belief of
Deffayet et al. 2023: the actor and the critics each read trajectories through a GRU of their own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from slaterl.agents.base import LatentAgent
from slaterl.beliefs.base import Belief, states_of
from slaterl.data.trajectories import Trajectories
from slaterl.errors import check_counts, check_positive, check_range, check_widths
from slaterl.networks import Critics, draw, mlp, polyak, tanh_gaussian
from slaterl.rankers.base import Ranker


class SAC(LatentAgent):
    """Off-policy actor-critic with a tanh-Gaussian policy and a learned temperature alpha.

    Policy and log-probabilities live in [-1, 1]^A; the critics read actions in the ranker's latent units.

    Args:
        belief: makes a belief; called once for the actor and once for the critics.
        gamma: discount; tau: share of the online critics that enters the targets at every update.
        q_lr, pi_lr, alpha_lr: Adam's learning rates of critics, policy (each with its belief) and temperature.
        q_hidden, pi_hidden: widths of the hidden layers.
        num_critics: of which the minimum counts.
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
        gamma: float,
        tau: float,
        q_lr: float,
        pi_lr: float,
        alpha_lr: float,
        q_hidden: Sequence[int],
        pi_hidden: Sequence[int],
        num_critics: int,
        initial_alpha: float,
        target_entropy_scale: float,
    ) -> None:
        check_range(0, 1, **{"agent.gamma": gamma, "agent.tau": tau})
        check_positive(**{"agent.q_lr": q_lr, "agent.pi_lr": pi_lr, "agent.alpha_lr": alpha_lr})
        check_positive(**{"agent.initial_alpha": initial_alpha})
        check_range(0, math.inf, **{"agent.target_entropy_scale": target_entropy_scale})
        check_counts(**{"agent.num_critics": num_critics})
        check_widths(**{"agent.q_hidden": q_hidden, "agent.pi_hidden": pi_hidden})
        super().__init__(ranker)
        self.gamma, self.tau = gamma, tau
        self.target_entropy = -target_entropy_scale * ranker.action_dim
        self.generators["update"] = generator

        self.actor_belief, self.critic_belief = belief(), belief()
        state_dim = self.actor_belief.state_dim
        self.actor = mlp(state_dim, pi_hidden, 2 * ranker.action_dim)
        self.critics = Critics(num_critics, state_dim + ranker.action_dim, q_hidden)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial_alpha)))

        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)
        self.add_optimizer("alpha", self.log_alpha, lr=alpha_lr)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            return self.actor(state).chunk(2, dim=-1)[0].tanh()
        return draw(self.actor(state), generator)[0].tanh()

    def behaviour(self, batch: Trajectories) -> Tensor:
        """The actions [B, H, A] in [-1, 1] that the critics learn from."""
        assert batch.actions is not None
        return batch.actions

    def served(self, state: Tensor, action: Tensor) -> Tensor:
        """What is shown to users in states [..., H] for policy actions [..., A], as actions in [-1, 1]."""
        return action

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """One step of critics, policy, temperature and targets on B whole trajectories."""
        reward = batch.rewards  # [B, H]
        generator, alpha = self.generators["update"], self.log_alpha.detach().exp()
        for optimizer in self.optim.values():
            optimizer.zero_grad(set_to_none=True)
        # Both beliefs in one scan. The losses end at `states`, so that the way back is one scan, too.
        beliefs = states_of([self.critic_belief, self.actor_belief], batch)
        states = beliefs.detach().requires_grad_()
        critic_state, actor_state = states  # [B, H, state]
        gaussian = self.actor(actor_state)  # [B, H, 2A]

        # critics: y = r + gamma * (min Q'(s', a') - alpha * log pi(a' | s')), and y = r in the last turn
        with torch.no_grad():
            next_action, next_log_prob = tanh_gaussian(gaussian[:, 1:], generator)
            next_action = self.served(critic_state[:, 1:], next_action)
            next_q = self.q_values(self.target_critics, critic_state[:, 1:], next_action).amin(0)
            target = reward.clone()
            target[:, :-1] += self.gamma * (next_q - alpha * next_log_prob)
        q = self.q_values(self.critics, critic_state, self.behaviour(batch))
        critic_loss = (q - target).square().mean()
        critic_loss.backward()

        # policy: the critics and their belief receive nothing from it
        self.critics.requires_grad_(False)
        action, log_prob = tanh_gaussian(gaussian, generator)
        policy_q = self.q_values(self.critics, critic_state.detach(), action).amin(0)
        actor_loss = (alpha * log_prob - policy_q).mean()
        actor_loss.backward()
        self.critics.requires_grad_(True)

        # temperature: up while the entropy is below its target
        alpha_loss = -self.log_alpha.exp() * (log_prob.detach().mean() + self.target_entropy)
        alpha_loss.backward()

        if beliefs.requires_grad:
            beliefs.backward(states.grad)
        for optimizer in self.optim.values():
            optimizer.step()
        polyak(self.critics, self.target_critics, self.tau)

        return {
            "loss/critic": critic_loss,
            "loss/actor": actor_loss,
            "loss/alpha": alpha_loss,
            "value/q": q.mean(),
            "value/target": target.mean(),
            "policy/entropy": -log_prob.mean(),
            "policy/alpha": alpha,
        }
