"""Diffusion-QL: a diffusion policy that imitates the recorded actions and maximises Q.

Wang et al., "Diffusion Policies as an Expressive Policy Class for Offline RL", arXiv 2208.06193.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from slaterl.agents.offline.actor_critic import OfflineActorCritic, Turns, best_of
from slaterl.agents.offline.base import MakeBelief
from slaterl.agents.offline.diffusion import Denoiser, Diffusion
from slaterl.beliefs.base import JoinedBeliefs
from slaterl.bounds import Count, Fraction, NonNegative, Positive, Several, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import frozen, polyak, target_of
from slaterl.rankers.base import Ranker


class DiffusionQL(OfflineActorCritic):
    """A policy that turns noise into actions in T steps (algorithm 1 of the paper).

    The policy minimises L_BC - eta * Q_i(s, a) / mean |Q_j|. L_BC is the error of the noise that it predicts in
    recorded actions. a ~ pi(s) takes all steps, and the gradient goes back through them. i and j are two
    critics drawn for each update. Critics learn y = r + gamma * min Q'(s', a'), a' ~ pi'(s').

    It acts by one of `candidates` draws: one drawn by softmax(min Q'), or without a generator the one with the largest
    min Q' among draws from fixed noise.

    Args:
        steps: T.
        eta: weight of Q against imitation.
        candidates: draws per state when acting.
        decay_steps: updates until a cosine schedule takes both learning rates to zero.
        others: see OfflineActorCritic.
    """

    TERMS: ClassVar = (*OfflineActorCritic.TERMS, "loss/imitation")

    acting_noise: Tensor

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        gamma: Fraction, reward_scale: Positive, tau: Fraction,
        q_lr: Positive, pi_lr: Positive, q_hidden: Widths, pi_hidden: Widths, num_critics: Several, layer_norm: bool,
        steps: Count, eta: NonNegative, candidates: Count, decay_steps: Count,
    ) -> None:  # fmt: skip
        super().__init__(ranker, belief, generator, gamma, reward_scale, tau)
        self.eta, self.candidates = eta, candidates
        self.q_lr, self.pi_lr, self.decay_steps = q_lr, pi_lr, decay_steps
        self.diffusion = Diffusion(steps)
        self.actor = Denoiser(self.state_dim, self.action_dim, pi_hidden)
        self.build_critics(num_critics, q_hidden, layer_norm)
        self.target_actor = target_of(self.actor)
        # The same noise for every user and turn, so that acting is repeatable.
        self.register_buffer("acting_noise", torch.randn(steps, candidates, self.action_dim))
        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    @property
    def acting_belief(self) -> JoinedBeliefs:
        return JoinedBeliefs([self.actor_belief, self.critic_belief])

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        """Choose among draws of the policy by min Q': one by softmax, or without a generator the best."""
        actor_state, critic_state = state.chunk(2, dim=-1)
        shape = (self.candidates, *actor_state.shape[:-1])
        if generator is None:
            users = (1,) * (actor_state.ndim - 1)
            noise = self.acting_noise.view(-1, self.candidates, *users, self.action_dim).expand(-1, *shape, -1)
        else:
            size = (self.diffusion.steps, *shape, self.action_dim)
            noise = torch.randn(size, generator=generator, device=state.device)
        proposals = self.drawn(self.actor, actor_state.expand(*shape, -1), noise)  # [n, ..., A]
        q = self.q_values(self.target_critics, critic_state.expand(*shape, -1), proposals).amin(0)
        if generator is not None:  # the largest of q + Gumbel noise is a draw of softmax(q)
            q = q - (-torch.rand(shape, generator=generator, device=state.device).log()).log()
        return best_of(proposals, q)

    def drawn(self, actor: nn.Module, state: Tensor, noise: Tensor) -> Tensor:
        """Turn noise [T, ..., A] into actions [..., A] in [-1, 1] at states [..., state]."""
        return self.diffusion.denoised(lambda x, step: actor(state, x, step), noise)

    def imitation(self, turns: Turns) -> Tensor:
        """Return mean (eps(s, a_t, t) - eps)^2 for noise eps ~ N(0, 1) in recorded actions, at uniform steps t."""
        steps = self.diffusion.steps
        step = (steps * self.uniform(*turns.reward.shape)).long().clamp(max=steps - 1)
        noise = self.normal(*turns.action.shape)
        found = self.actor(turns.actor_state, self.diffusion.noised(turns.action, noise, step), step)
        return turns.mean((found - noise).square(), of_vectors=True)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of critics, policy and targets on B whole trajectories."""
        self.decay("critic", self.q_lr, self.decay_steps)
        self.decay("actor", self.pi_lr, self.decay_steps)
        turns, steps = self.turns(batch), self.diffusion.steps

        # critics: y = r + gamma * min Q'(s', a'), a' ~ pi'(s')
        with torch.no_grad():
            noise = self.normal(steps, *turns.action[:, 1:].shape)
            next_action = self.drawn(self.target_actor, turns.actor_state[:, 1:], noise)
            next_q = self.q_values(self.target_critics, turns.critic_state[:, 1:], next_action).amin(0)
            target = turns.target(next_q, self.gamma)
        q = self.q_values(self.critics, turns.critic_state, turns.action)
        critic_loss = turns.mean((q - target).square())

        # policy: L_BC - eta * Q_i(s, a) / mean |Q_j|, a ~ pi(s)
        imitation = self.imitation(turns)
        action = self.drawn(self.actor, turns.actor_state, self.normal(steps, *turns.action.shape))
        with frozen(self.critics):
            policy_q = self.q_values(self.critics, turns.critic_state.detach(), action)
        generator = self.generators["update"]
        order = torch.randperm(len(policy_q), generator=generator, device=generator.device)
        q_i, q_j, *_ = policy_q[order]
        actor_loss = imitation - self.eta * turns.mean(q_i) / turns.mean(q_j.detach().abs())

        self.descend(critic=critic_loss, actor=actor_loss)
        polyak(self.critics, self.target_critics, self.tau)
        polyak(self.actor, self.target_actor, self.tau)
        self.record_policy(actor_loss, action, policy_q.mean(0), turns)
        terms = self.terms(critic_loss, target, q, q_data=q.mean(0), turns=turns)
        return {**terms, "loss/imitation": imitation}
