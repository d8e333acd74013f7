"""CQL: critics that learn low values for actions outside the data.

Kumar et al., "Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2006.04779.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from slaterl.agents.losses import at, soft_policy_loss, temperature_loss
from slaterl.agents.offline.actor_critic import ENTROPY_TERMS, OfflineActorCritic, Turns, some_turns
from slaterl.agents.offline.base import MakeBelief
from slaterl.bounds import Count, Fraction, NonNegative, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import frozen, gaussian_action, mlp, polyak
from slaterl.rankers.base import Ranker


class CQL(OfflineActorCritic):
    """CQL(rho): SAC whose critics also minimise alpha_c * (log E_rho exp Q(s, a) - Q(s, a_data)) (section 3.2).

    rho is an equal mixture of uniform actions, pi(s) and pi(s'). The target is r + gamma * min Q'(s', a') without
    entropy, and the policy is SAC's.

    CQL(H), equation 4, integrates exp Q over the whole box, and weighs each draw by its inverse density (appendix F).
    In 32 dimensions a uniform action then counts exp(22), and one of a policy with the entropy -16 counts exp(-16).
    So Q of uniform actions has to fall 38 below Q of the policy, whatever rewards are: a pit of logarithms of volumes.
    An average over rho has no volume, and compares values in clicks.

    Args:
        alpha_lr: Adam's learning rate of SAC's temperature; initial_alpha: temperature before the first update.
        conservatism: alpha_c, in clicks times reward_scale; with a threshold, its initial value.
        threshold: value of the penalty that alpha_c is learned towards, as a Lagrange multiplier; None keeps alpha_c.
        actions: number of actions drawn per state from each distribution.
        turns: number of turns whose states are penalised, drawn at every update.
        others: see OfflineActorCritic.
    """

    MIN_TURNS: ClassVar = 2
    TERMS: ClassVar = (*OfflineActorCritic.TERMS, *ENTROPY_TERMS)

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        gamma: Fraction, reward_scale: Positive, tau: Fraction,
        q_lr: Positive, pi_lr: Positive, q_hidden: Widths, pi_hidden: Widths, num_critics: Count, layer_norm: bool,
        alpha_lr: Positive, initial_alpha: Positive,
        conservatism: Positive, threshold: NonNegative | None, actions: Count, turns: Count,
    ) -> None:  # fmt: skip
        super().__init__(ranker, belief, generator, gamma, reward_scale, tau)
        self.threshold, self.draws, self.turns_drawn = threshold, actions, turns
        self.actor = mlp(self.state_dim, pi_hidden, 2 * self.action_dim)
        self.build_critics(num_critics, q_hidden, layer_norm)
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
        turns, losses, alpha = self.turns(batch), {}, self.log_alpha.detach().exp()

        # critics: y = r + gamma * min Q'(s', a'), a' ~ pi(s')
        with torch.no_grad():
            next_action, _ = self.sample(turns.actor_state[:, 1:])
            next_q = self.q_values(self.target_critics, turns.critic_state[:, 1:], next_action).amin(0)
            target = turns.target(next_q, self.gamma)
        q = self.q_values(self.critics, turns.critic_state, turns.action)

        # penalty: alpha_c * (log E_rho exp Q(s, a) - Q(s, a_data) - threshold), which alpha_c maximises if learned
        excess, alpha_c = self.penalty(turns, q), self.log_conservatism.exp()
        if self.threshold is not None:
            excess = excess - self.threshold
            losses["conservatism"] = -alpha_c * excess.detach()
        losses["critic"] = turns.mean((q - target).square()) + alpha_c.detach() * excess

        # policy: alpha * log pi(a|s) - min Q(s, a); temperature: towards an entropy of -A
        action, log_prob = self.sample(turns.actor_state)
        with frozen(self.critics):
            policy_q = self.q_values(self.critics, turns.critic_state.detach(), action).amin(0)
        losses["actor"] = soft_policy_loss(alpha, log_prob, policy_q, turns.valid)
        losses["alpha"] = temperature_loss(self.log_alpha, log_prob, -self.action_dim, turns.valid)

        self.descend(**losses)
        polyak(self.critics, self.target_critics, self.tau)
        self.record_policy(losses["actor"], action, policy_q, turns)
        return {
            **self.terms(losses["critic"], target, q, q_data=q.amin(0), turns=turns),
            **self.entropy_terms(alpha, log_prob, turns),
        }

    def penalty(self, turns: Turns, q: Tensor) -> Tensor:
        """Return the mean of log E_rho exp Q(s, a) - Q(s, a_data) over critics and some states of the data.

        Args:
            q: values [num_critics, B, H] of the recorded actions.
        """
        generator = self.generators["update"]
        some, chosen = some_turns(turns, self.turns_drawn, generator)
        states = some.critic_state.unsqueeze(0).expand(self.draws, -1, -1, -1)  # [n, B, T, state]
        with torch.no_grad():
            shape = (*states.shape[:-1], self.action_dim)
            draws = [2 * torch.rand(shape, generator=generator, device=states.device) - 1]
            for actor_state in (some.actor_state, at(turns.actor_state, chosen + 1)):  # pi(s), pi(s')
                draws.append(self.sample(actor_state.expand(self.draws, -1, -1, -1))[0])
        uniform, *own = (self.q_values(self.critics, states, action) for action in draws)
        values = torch.cat([uniform, *(self.own_values(q, turns, chosen) for q in own)], dim=1)
        largest = values.logsumexp(1) - math.log(values.shape[1])  # [num_critics, B, T]
        return some.mean(largest - at(q, chosen, users=1))

    def own_values(self, q: Tensor, turns: Turns, chosen: Tensor) -> Tensor:
        """Return what the penalty reads at the policy's actions: Q itself.

        Args:
            q: values [num_critics, n, B, T] of the policy's actions.
            chosen: numbers of the turns, [T] or [B, T].
        """
        return q
