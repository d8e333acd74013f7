"""TD3 in the latent space of a ranker: the deterministic counterpart of SAC.

Fujimoto et al., "Addressing Function Approximation Error in Actor-Critic Methods", arXiv 1802.09477, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from slaterl.agents.base import LatentAgent
from slaterl.agents.losses import bootstrap, continuing_turns, mean, smoothed, valid_turns
from slaterl.beliefs.base import Belief, for_actor_and_critics, states_of
from slaterl.bounds import Count, Fraction, NonNegative, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import Critics, frozen, mlp, polyak, target_of
from slaterl.rankers.base import Ranker


class TD3(LatentAgent):
    """Twin critics, target policy smoothing and delayed updates of a deterministic policy (algorithm 1 of the paper).

    Critics minimise (Q(s, a) - y)^2, y = r + gamma * min Q'(s', clip(pi'(s') + clip(noise))); the policy maximises
    Q1(s, pi(s)). The critics read actions in the ranker's latent units.

    Args:
        ranker: the ranker that the agent acts through, already trained.
        belief: makes a belief; called once for the actor and once for the critics.
        generator: random stream of the updates.
        gamma: discount.
        tau: Polyak rate of the targets, applied at every update of the policy.
        q_lr, pi_lr: Adam's learning rates of critics and policy, each with its belief.
        q_hidden, pi_hidden: widths of the hidden layers of critics and policy.
        layer_norm: a layer norm after each ReLU of the critics. Checkpoints from before this setting lack it.
        exploration_noise: standard deviation of the Gaussian noise on the actions that collect data.
        target_noise, noise_clip: standard deviation and bound of the noise on the target's actions.
        policy_delay: updates of the critics per update of the policy.
    """

    actor_loss: Tensor

    TERMS: ClassVar = ("loss/critic", "loss/actor", "value/q", "value/target")

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
        q_hidden: Widths,
        pi_hidden: Widths,
        exploration_noise: NonNegative,
        target_noise: NonNegative,
        noise_clip: NonNegative,
        policy_delay: Count,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(ranker)
        self.gamma, self.tau, self.policy_delay = gamma, tau, policy_delay
        self.exploration_noise, self.target_noise, self.noise_clip = exploration_noise, target_noise, noise_clip
        self.generators["update"] = generator

        self.actor_belief, self.critic_belief = for_actor_and_critics(belief(), belief)
        state_dim = self.actor_belief.state_dim
        self.actor = mlp(state_dim, pi_hidden, ranker.action_dim)
        self.critics = Critics(2, state_dim + ranker.action_dim, q_hidden, layer_norm)
        self.target_actor = target_of(self.actor)
        self.target_critics = target_of(self.critics)
        self.register_buffer("actor_loss", torch.zeros(()))  # at the policy's last update
        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        action = self.actor(state).tanh()
        if generator is None:
            return action
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        return (action + self.exploration_noise * noise).clamp(-1, 1)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of the critics, and every policy_delay-th time also one of policy and targets."""
        assert batch.actions is not None
        mask = valid_turns(batch)
        # One scan computes both beliefs, and each loss trains its own belief.
        critic_state, actor_state = states_of([self.critic_belief, self.actor_belief], batch)

        # critics: y = r + gamma * min Q'(s', clip(pi'(s') + clip(noise)))
        with torch.no_grad():
            next_action = self.target_actor(actor_state[:, 1:]).tanh()
            next_action = smoothed(next_action, self.target_noise, self.noise_clip, self.generators["update"])
            next_q = self.q_values(self.target_critics, critic_state[:, 1:], next_action).amin(0)
            target = bootstrap(batch.rewards, next_q, self.gamma, continuing_turns(batch))
        q = self.q_values(self.critics, critic_state, batch.actions)
        losses = {"critic": mean((q - target).square(), mask)}

        # policy: -Q1(s, pi(s))
        policy_turn = self.step % self.policy_delay == 0
        if policy_turn:
            action = self.actor(actor_state).tanh()
            with frozen(self.critics):
                losses["actor"] = -mean(self.q_values(self.critics, critic_state.detach(), action)[0], mask)
            self.actor_loss.copy_(losses["actor"].detach())

        self.descend(**losses)
        if policy_turn:
            polyak(self.critics, self.target_critics, self.tau)
            polyak(self.actor, self.target_actor, self.tau)
        return {
            "loss/critic": losses["critic"],
            "loss/actor": self.actor_loss.clone(),
            "value/q": mean(q, mask),
            "value/target": mean(target, mask),
        }
