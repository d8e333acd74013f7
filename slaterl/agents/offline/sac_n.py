"""SAC-N and EDAC: many critics, whose minimum is low for actions that the data do not cover.

An et al., "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble", arXiv 2110.01548.
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from slaterl.agents.losses import soft_policy_loss, temperature_loss
from slaterl.agents.offline.actor_critic import ENTROPY_TERMS, OfflineActorCritic, Turns, some_turns
from slaterl.agents.offline.base import MakeBelief
from slaterl.bounds import Count, Fraction, NonNegative, Positive, Several, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import MLP, frozen, gaussian_action, mlp, polyak
from slaterl.rankers.base import Ranker


class SACN(OfflineActorCritic):
    """SAC with N critics: y = r + gamma * (min_i Q'_i(s', a') - alpha * log pi(a'|s')).

    The last term is the entropy; `entropy_in_target` can leave it out.

    The policy maximises min_i Q_i(s, a) - alpha * log pi(a|s), and alpha is learned towards an entropy of -A.

    Args:
        alpha_lr: Adam's learning rate of the temperature alpha.
        initial_alpha: temperature before the first update.
        entropy_in_target: whether the targets contain the entropy of the policy.
        others: see OfflineActorCritic.
    """

    TERMS: ClassVar = (*OfflineActorCritic.TERMS, *ENTROPY_TERMS)

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        gamma: Fraction, reward_scale: Positive, tau: Fraction,
        q_lr: Positive, pi_lr: Positive, q_hidden: Widths, pi_hidden: Widths, num_critics: Count, layer_norm: bool,
        alpha_lr: Positive, initial_alpha: Positive, entropy_in_target: bool,
    ) -> None:  # fmt: skip
        super().__init__(ranker, belief, generator, gamma, reward_scale, tau)
        self.entropy_in_target = entropy_in_target
        self.actor = mlp(self.state_dim, pi_hidden, 2 * self.action_dim)
        self.build_critics(num_critics, q_hidden, layer_norm)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial_alpha)))
        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)
        self.add_optimizer("alpha", self.log_alpha, lr=alpha_lr)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        return gaussian_action(self.actor(state), generator)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of critics, policy, temperature and targets on B whole trajectories."""
        turns, alpha = self.turns(batch), self.log_alpha.detach().exp()

        # critics: y = r + gamma * (min Q'(s', a') - alpha * log pi(a'|s'))
        target, bonus = self.soft_target(turns)
        q = self.q_values(self.critics, turns.critic_state, turns.action)
        critic_loss = turns.mean((q - target).square()) + self.diversity(turns)

        # policy: alpha * log pi(a|s) - min Q(s, a); temperature: towards an entropy of -A
        action, log_prob = self.sample(turns.actor_state)
        with frozen(self.critics):
            policy_q = self.q_values(self.critics, turns.critic_state.detach(), action).amin(0)
        actor_loss = soft_policy_loss(alpha, log_prob, policy_q, turns.valid)
        alpha_loss = temperature_loss(self.log_alpha, log_prob, -self.action_dim, turns.valid)

        self.descend(critic=critic_loss, actor=actor_loss, alpha=alpha_loss)
        polyak(self.critics, self.target_critics, self.tau)
        self.record_policy(actor_loss, action, policy_q, turns)
        return {
            **self.terms(critic_loss, target, q, q_data=q.amin(0), turns=turns, bonus=bonus),
            **self.entropy_terms(alpha, log_prob, turns),
        }

    @torch.no_grad()
    def soft_target(self, turns: Turns) -> tuple[Tensor, Tensor]:
        """Return y = r + gamma * (min Q'(s', a') + bonus) [B, H], and bonus = -alpha * log pi(a'|s') [B, H-1]."""
        next_action, next_log_prob = self.sample(turns.actor_state[:, 1:])
        next_q = self.q_values(self.target_critics, turns.critic_state[:, 1:], next_action).amin(0)
        bonus = -self.log_alpha.exp() * next_log_prob * self.entropy_in_target
        return turns.target(next_q + bonus, self.gamma), bonus

    def diversity(self, turns: Turns) -> Tensor | float:
        """Return what the critics minimise besides their errors: nothing."""
        return 0.0


class EDAC(SACN):
    """SAC-N with critics whose gradients by the action are kept diverse, so that few critics suffice.

    The critics minimise their summed squared errors + eta / (N - 1) * sum_{i != j} cos(dQ_i/da, dQ_j/da), algorithm 1
    of the paper. The logged loss is this sum divided by N.

    Args:
        eta: weight of the cosine similarities.
        turns: number of turns whose states enter the cosines, drawn at every update.
        others: see SACN.
    """

    MIN_TURNS: ClassVar = 2

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        gamma: Fraction, reward_scale: Positive, tau: Fraction,
        q_lr: Positive, pi_lr: Positive, q_hidden: Widths, pi_hidden: Widths, num_critics: Several, layer_norm: bool,
        alpha_lr: Positive, initial_alpha: Positive, entropy_in_target: bool, eta: NonNegative, turns: Count,
    ) -> None:  # fmt: skip
        super().__init__(
            ranker=ranker, belief=belief, generator=generator, gamma=gamma, reward_scale=reward_scale, tau=tau,
            q_lr=q_lr, pi_lr=pi_lr, q_hidden=q_hidden, pi_hidden=pi_hidden, num_critics=num_critics,
            layer_norm=layer_norm, alpha_lr=alpha_lr, initial_alpha=initial_alpha, entropy_in_target=entropy_in_target,
        )  # fmt: skip
        self.eta, self.turns_drawn = eta, turns

    def diversity(self, turns: Turns) -> Tensor:
        count = len(self.critics.members)
        # The loss is a mean over critics, so the cosines are divided by N, too.
        return self.eta * self.cosines(turns) / (count - 1) / count

    def cosines(self, turns: Turns) -> Tensor:
        """Return the sum over pairs i != j of cos(dQ_i/da, dQ_j/da), averaged over some states of the data."""
        some, _ = some_turns(turns, self.turns_drawn, self.generators["update"])
        # A copy of the action for each critic, so that one backward pass gives each its own gradient.
        action = some.action.expand(len(self.critics.members), -1, -1, -1).clone().requires_grad_()
        inputs = [torch.cat([some.critic_state, self.ranker.to_latent(own)], dim=-1) for own in action]
        members = cast(list[MLP], self.critics.members)
        values = [member.twice_differentiable(own) for member, own in zip(members, inputs, strict=True)]
        (gradient,) = torch.autograd.grad(torch.stack(values).sum(), action, create_graph=True)
        directions = normalize(gradient, dim=-1)
        # The sum over pairs i != j is |sum of directions|^2 - N.
        return some.mean(directions.sum(0).square().sum(-1) - directions.square().sum((0, -1)))
