"""ReBRAC: TD3 + BC with separate penalties for actor and critics, and deeper networks.

Tarasov et al., "Revisiting the Minimalist Approach to Offline Reinforcement Learning", arXiv 2305.09836.
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


class ReBRAC(OfflineActorCritic):
    """TD3 with a penalty on the policy's distance to the data, in the policy's loss and in the critics' target.

    The policy minimises mean(actor_penalty * |pi(s) - a|^2 - lam * min Q(s, pi(s))), lam = 1 / mean |min Q|.

    Args:
        policy_delay: updates of the critics per update of the policy.
        target_noise, noise_clip: standard deviation and bound of the noise on the target's actions.
        actor_penalty, critic_penalty: weights of the squared distances to the data's actions, summed over the action.
        others: see OfflineActorCritic.
    """

    explores = False

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        gamma: Fraction, reward_scale: Positive, tau: Fraction,
        q_lr: Positive, pi_lr: Positive, q_hidden: Widths, pi_hidden: Widths, num_critics: Count, layer_norm: bool,
        policy_delay: Count, target_noise: NonNegative, noise_clip: NonNegative,
        actor_penalty: NonNegative, critic_penalty: NonNegative,
    ) -> None:  # fmt: skip
        super().__init__(ranker, belief, generator, gamma, reward_scale, tau)
        self.policy_delay, self.target_noise, self.noise_clip = policy_delay, target_noise, noise_clip
        self.actor_penalty, self.critic_penalty = actor_penalty, critic_penalty
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

        # critics: y = r + gamma * (min Q'(s', a~') - critic_penalty * |a~' - a'|^2), a' of the data
        with torch.no_grad():
            next_action = self.target_actor(turns.actor_state[:, 1:]).tanh()
            next_action = smoothed(next_action, self.target_noise, self.noise_clip, self.generators["update"])
            next_q = self.q_values(self.target_critics, turns.critic_state[:, 1:], next_action).amin(0)
            next_distance = (next_action - turns.action[:, 1:]).square().sum(-1)
            if turns.valid is not None:  # where the log was cut, the data have no a'
                next_distance = next_distance.where(turns.valid[:, 1:], 0.0)
            target = turns.target(next_q - self.critic_penalty * next_distance, self.gamma)
        q = self.q_values(self.critics, turns.critic_state, turns.action)
        losses = {"critic": turns.mean((q - target).square())}

        # policy: actor_penalty * |pi(s) - a|^2 - lam * min Q(s, pi(s))
        policy_turn = self.step % self.policy_delay == 0
        if policy_turn:
            action = self.actor(turns.actor_state).tanh()
            with frozen(self.critics):
                policy_q = self.q_values(self.critics, turns.critic_state.detach(), action).amin(0)
            distance = (action - turns.action).square().sum(-1)
            scale = turns.mean(policy_q.detach().abs())
            losses["actor"] = turns.mean(self.actor_penalty * distance - policy_q / scale)

        self.descend(**losses)
        if policy_turn:
            polyak(self.critics, self.target_critics, self.tau)
            polyak(self.actor, self.target_actor, self.tau)
            self.record_policy(losses["actor"], action, policy_q, turns)
        return self.terms(losses["critic"], target, q, q_data=q.amin(0), turns=turns)
