"""FQL: a flow imitates the recorded actions, and a one-step policy stays close to it and maximises Q.

Park et al., "Flow Q-Learning", arXiv 2502.02538.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from slaterl.agents.offline.actor_critic import OfflineActorCritic, Turns
from slaterl.agents.offline.base import MakeBelief
from slaterl.beliefs.base import states_of
from slaterl.bounds import Count, Fraction, NonNegative, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import frozen, mlp, polyak
from slaterl.rankers.base import Ranker


class FQL(OfflineActorCritic):
    """A flow policy of the data, and a one-step policy mu(s, z), z ~ N(0, 1) (algorithm 1 of the paper).

    The flow's velocity v minimises (v(s, x_t, t) - (a - x_0))^2. Here x_t = (1 - t) * x_0 + t * a and x_0 ~ N(0, 1).
    Following it from z for `flow_steps` Euler steps gives flow(s, z), which is distributed as the data's actions.
    The one-step policy minimises alpha * (mu(s, z) - flow(s, z))^2 - Q(s, mu(s, z)) / mean |Q|. So no gradient goes
    through the steps of the flow.

    Critics learn y = r + gamma * Q'(s', mu(s', z')). Q is the mean of the critics, in targets and for the policy.

    Critics, flow and policy read beliefs of their own, and only the flow's loss trains the flow and its belief.

    Args:
        alpha: weight of the distance to the flow, a mean over the components of an action.
        flow_steps: Euler steps from noise to an action of the flow.
        pi_hidden, pi_lr: of flow and policy.
        others: see OfflineActorCritic.
    """

    TERMS: ClassVar = (*OfflineActorCritic.TERMS, "loss/flow", "loss/distance")

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        gamma: Fraction, reward_scale: Positive, tau: Fraction,
        q_lr: Positive, pi_lr: Positive, q_hidden: Widths, pi_hidden: Widths, num_critics: Count, layer_norm: bool,
        alpha: NonNegative, flow_steps: Count,
    ) -> None:  # fmt: skip
        super().__init__(ranker, belief, generator, gamma, reward_scale, tau)
        self.alpha, self.flow_steps = alpha, flow_steps
        self.flow_belief = belief()
        self.flow = mlp(self.state_dim + self.action_dim + 1, pi_hidden, self.action_dim)
        self.actor = mlp(self.state_dim + self.action_dim, pi_hidden, self.action_dim)
        self.build_critics(num_critics, q_hidden, layer_norm)
        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("flow", self.flow, self.flow_belief, lr=pi_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        """Act by mu(s, z). Without a generator, z = 0.

        The mean over z would lie between the modes of a policy that has several. z = 0 is the median of the noise, so
        it belongs to the larger mode.
        """
        shape = (*state.shape[:-1], self.action_dim)
        noise = state.new_zeros(shape)
        if generator is not None:
            noise = torch.randn(shape, generator=generator, device=state.device)
        return self.actor(state, noise).clamp(-1, 1)

    @torch.no_grad()
    def flow_action(self, state: Tensor, noise: Tensor) -> Tensor:
        """Follow the flow from noise [..., A] at states [..., state] to actions [..., A] in [-1, 1]."""
        action = noise
        for step in range(self.flow_steps):
            time = torch.full_like(action[..., :1], step / self.flow_steps)
            action = action + self.flow(state, action, time) / self.flow_steps
        return action.clamp(-1, 1)

    def flow_loss(self, state: Tensor, turns: Turns) -> Tensor:
        """Return mean (v(s, x_t, t) - (a - x_0))^2 for states [B, H, state] of the flow's belief."""
        noise, time = self.normal(*turns.action.shape), self.uniform(*turns.reward.shape, 1)
        velocity = self.flow(state, (1 - time) * noise + time * turns.action, time)
        return turns.mean((velocity - (turns.action - noise)).square(), of_vectors=True)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of critics, flow, policy and targets on B whole trajectories."""
        turns = self.turns(batch)
        (flow_state,) = states_of([self.flow_belief], batch.with_room())  # as `turns` reads the other two

        # critics: y = r + gamma * mean Q'(s', mu(s', z'))
        with torch.no_grad():
            next_action = self.action(turns.actor_state[:, 1:], self.generators["update"])
            next_q = self.q_values(self.target_critics, turns.critic_state[:, 1:], next_action).mean(0)
            target = turns.target(next_q, self.gamma)
        q = self.q_values(self.critics, turns.critic_state, turns.action)
        critic_loss = turns.mean((q - target).square())

        # policy: alpha * (mu(s, z) - flow(s, z))^2 - mean Q(s, mu(s, z)) / mean |Q|
        flow_loss = self.flow_loss(flow_state, turns)
        noise = self.normal(*turns.action.shape)
        action = self.actor(turns.actor_state, noise)
        distance = turns.mean((action - self.flow_action(flow_state, noise)).square(), of_vectors=True)
        with frozen(self.critics):
            policy_q = self.q_values(self.critics, turns.critic_state.detach(), action.clamp(-1, 1)).mean(0)
        actor_loss = self.alpha * distance - turns.mean(policy_q) / turns.mean(policy_q.detach().abs())

        self.descend(critic=critic_loss, flow=flow_loss, actor=actor_loss)
        polyak(self.critics, self.target_critics, self.tau)
        self.record_policy(actor_loss, action.clamp(-1, 1), policy_q, turns)
        terms = self.terms(critic_loss, target, q, q_data=q.mean(0), turns=turns)
        return {**terms, "loss/flow": flow_loss, "loss/distance": distance}
