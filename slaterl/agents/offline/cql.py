"""CQL: critics that learn low values for actions outside the data.

Kumar et al., "Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2006.04779.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from slaterl.agents.losses import bootstrap, soft_policy_loss, temperature_loss
from slaterl.agents.offline.actor_critic import OfflineActorCritic, Turns, some_turns
from slaterl.agents.offline.base import MakeBelief
from slaterl.bounds import Count, Fraction, NonNegative, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import frozen, gaussian_action, mlp, polyak
from slaterl.rankers.base import Ranker


class CQL(OfflineActorCritic):
    """CQL(H): SAC whose critics also minimise alpha_c * (logsumexp_a Q(s, a) - Q(s, a_data)) (equation 4).

    The target is r + gamma * min Q'(s', a') without entropy, and the policy is SAC's. The logsumexp is estimated with
    actions drawn uniformly, from pi(s) and from pi(s'), each weighted by its density (appendix F).

    Args:
        alpha_lr: Adam's learning rate of SAC's temperature; initial_alpha: temperature before the first update.
        conservatism: alpha_c; with a threshold, its initial value.
        threshold: value of the penalty that alpha_c is learned towards, as a Lagrange multiplier; None keeps alpha_c.
        actions: number of actions drawn per state from each distribution.
        turns: number of turns whose states are penalised, drawn at every update.
        others: see OfflineActorCritic.
    """

    MIN_TURNS: ClassVar = 2

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        gamma: Fraction, reward_scale: Positive, tau: Fraction,
        q_lr: Positive, pi_lr: Positive, q_hidden: Widths, pi_hidden: Widths, num_critics: Count,
        alpha_lr: Positive, initial_alpha: Positive,
        conservatism: Positive, threshold: NonNegative | None, actions: Count, turns: Count,
    ) -> None:  # fmt: skip
        super().__init__(ranker, belief, generator, gamma, reward_scale, tau)
        self.threshold, self.draws, self.turns_drawn = threshold, actions, turns
        self.actor = mlp(self.state_dim, pi_hidden, 2 * self.action_dim)
        self.build_critics(num_critics, q_hidden)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial_alpha)))
        self.log_conservatism = nn.Parameter(torch.tensor(math.log(conservatism)), requires_grad=threshold is not None)
        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)
        self.add_optimizer("alpha", self.log_alpha, lr=alpha_lr)
        if threshold is not None:
            self.add_optimizer("conservatism", self.log_conservatism, lr=q_lr)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        return gaussian_action(self.actor(state), generator)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of critics, policy, temperatures and targets on B whole trajectories."""
        turns, losses = self.turns(batch), {}

        # critics: y = r + gamma * min Q'(s', a'), a' ~ pi(s')
        with torch.no_grad():
            next_action, _ = self.sample(turns.actor_state[:, 1:])
            next_q = self.q_values(self.target_critics, turns.critic_state[:, 1:], next_action).amin(0)
            target = bootstrap(turns.reward, next_q, self.gamma)
        q = self.q_values(self.critics, turns.critic_state, turns.action)

        # penalty: alpha_c * (logsumexp_a Q(s, a) - Q(s, a_data) - threshold), which alpha_c maximises if learned
        excess, alpha_c = self.penalty(turns, q), self.log_conservatism.exp()
        if self.threshold is not None:
            excess = excess - self.threshold
            losses["conservatism"] = -alpha_c * excess.detach()
        losses["critic"] = (q - target).square().mean() + alpha_c.detach() * excess

        # policy: alpha * log pi(a|s) - min Q(s, a); temperature: towards an entropy of -A
        action, log_prob = self.sample(turns.actor_state)
        with frozen(self.critics):
            policy_q = self.q_values(self.critics, turns.critic_state.detach(), action).amin(0)
        losses["actor"] = soft_policy_loss(self.log_alpha.detach().exp(), log_prob, policy_q)
        losses["alpha"] = temperature_loss(self.log_alpha, log_prob, target_entropy=-self.action_dim)

        self.descend(**losses)
        polyak(self.critics, self.target_critics, self.tau)
        self.record_policy(losses["actor"], action, policy_q)
        return self.terms(losses["critic"], target, q, q_data=q.amin(0))

    def penalty(self, turns: Turns, q: Tensor) -> Tensor:
        """Return the mean of logsumexp_a Q(s, a) - Q(s, a_data) over critics and some states of the data.

        Args:
            q: values [num_critics, B, H] of the recorded actions.
        """
        generator = self.generators["update"]
        some, chosen = some_turns(turns, self.turns_drawn, generator)
        states = some.critic_state.unsqueeze(0).expand(self.draws, -1, -1, -1)  # [n, B, T, state]
        with torch.no_grad():
            shape = (*states.shape[:-1], self.action_dim)
            uniform = 2 * torch.rand(shape, generator=generator, device=states.device) - 1
            log_uniform = states.new_full(shape[:-1], -self.action_dim * math.log(2))
            draws = [(uniform, log_uniform)]
            for actor_state in (some.actor_state, turns.actor_state[:, chosen + 1]):  # pi(s), pi(s')
                draws.append(self.sample(actor_state.expand(self.draws, -1, -1, -1)))
        scores = [self.q_values(self.critics, states, action) - log_prob for action, log_prob in draws]
        spread = torch.cat(scores, dim=1).logsumexp(1)  # [num_critics, B, T]
        return (spread - q[:, :, chosen]).mean()
