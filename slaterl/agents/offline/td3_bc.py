"""TD3 + BC: TD3 with a policy that stays close to the recorded actions.

Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement Learning", arXiv 2106.06860.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slaterl.agents.losses import smoothed
from slaterl.agents.offline.actor_critic import OfflineActorCritic
from slaterl.agents.offline.base import MakeBelief
from slaterl.bounds import Count, Fraction, NonNegative, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import frozen, mlp, polyak, target_of
from slaterl.rankers.base import Ranker


class TD3BC(OfflineActorCritic):
    """TD3 whose policy maximises lam * Q1(s, pi(s)) - (pi(s) - a)^2, lam = alpha / mean |Q1|.

    Args:
        policy_delay: updates of the critics per update of the policy.
        target_noise, noise_clip: standard deviation and bound of the noise on the target's actions.
        alpha: weight of Q against imitation.
        others: see OfflineActorCritic.
    """

    explores = False

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        gamma: Fraction, reward_scale: Positive, tau: Fraction,
        q_lr: Positive, pi_lr: Positive, q_hidden: Widths, pi_hidden: Widths, num_critics: Count, layer_norm: bool,
        policy_delay: Count, target_noise: NonNegative, noise_clip: NonNegative, alpha: NonNegative,
    ) -> None:  # fmt: skip
        super().__init__(ranker, belief, generator, gamma, reward_scale, tau)
        self.policy_delay, self.alpha = policy_delay, alpha
        self.target_noise, self.noise_clip = target_noise, noise_clip
        self.actor = mlp(self.state_dim, pi_hidden, self.action_dim)
        self.build_critics(num_critics, q_hidden, layer_norm)
        self.target_actor = target_of(self.actor)
        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.actor(state).tanh()

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of the critics, and every policy_delay-th time also one of policy and targets."""
        turns = self.turns(batch)

        # critics: y = r + gamma * min Q'(s', clip(pi'(s') + clip(noise)))
        with torch.no_grad():
            next_action = self.target_actor(turns.actor_state[:, 1:]).tanh()
            next_action = smoothed(next_action, self.target_noise, self.noise_clip, self.generators["update"])
            next_q = self.q_values(self.target_critics, turns.critic_state[:, 1:], next_action).amin(0)
            target = turns.target(next_q, self.gamma)
        q = self.q_values(self.critics, turns.critic_state, turns.action)
        losses = {"critic": turns.mean((q - target).square())}

        # policy: -lam * Q1(s, pi(s)) + (pi(s) - a)^2
        policy_turn = self.step % self.policy_delay == 0
        if policy_turn:
            action = self.actor(turns.actor_state).tanh()
            with frozen(self.critics):
                policy_q = self.first_q(turns.critic_state.detach(), action)
            lam = self.alpha / turns.mean(policy_q.detach().abs())
            distance = turns.mean((action - turns.action).square(), of_vectors=True)
            losses["actor"] = -lam * turns.mean(policy_q) + distance

        self.descend(**losses)
        if policy_turn:
            polyak(self.critics, self.target_critics, self.tau)
            polyak(self.actor, self.target_actor, self.tau)
            self.record_policy(losses["actor"], action, policy_q, turns)
        return self.terms(losses["critic"], target, q, q_data=q[0], turns=turns)
