"""TD3 in the latent space of a ranker: the deterministic peer of SAC.

Fujimoto et al., "Addressing Function Approximation Error in Actor-Critic Methods", arXiv 1802.09477, algorithm 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from slaterl.agents.base import LatentAgent
from slaterl.beliefs.base import Belief, states_of
from slaterl.data.trajectories import Trajectories
from slaterl.errors import check_counts, check_positive, check_range, check_widths
from slaterl.networks import Critics, mlp, polyak
from slaterl.rankers.base import Ranker


class TD3(LatentAgent):
    """Twin critics, target policy smoothing, delayed policy updates. Critics read actions in latent units, as SAC's do.

    Args:
        belief: makes a belief; called once for the actor and once for the critics.
        gamma: discount; tau: share of the online networks that enters the targets with every update of the policy.
        exploration_noise: deviation of the Gaussian noise on the actions that collect data.
        target_noise, noise_clip: deviation and bound of the noise on the target's actions.
        policy_delay: updates of the critics for one of the policy.
    """

    TERMS: ClassVar = ("loss/critic", "loss/actor", "value/q", "value/target")

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
        q_hidden: Sequence[int],
        pi_hidden: Sequence[int],
        exploration_noise: float,
        target_noise: float,
        noise_clip: float,
        policy_delay: int,
    ) -> None:
        check_range(0, 1, **{"agent.gamma": gamma, "agent.tau": tau})
        check_positive(**{"agent.q_lr": q_lr, "agent.pi_lr": pi_lr})
        noises = {"agent.exploration_noise": exploration_noise, "agent.target_noise": target_noise}
        check_range(0, float("inf"), **noises, **{"agent.noise_clip": noise_clip})
        check_counts(**{"agent.policy_delay": policy_delay})
        check_widths(**{"agent.q_hidden": q_hidden, "agent.pi_hidden": pi_hidden})
        super().__init__(ranker)
        self.gamma, self.tau, self.policy_delay = gamma, tau, policy_delay
        self.exploration_noise, self.target_noise, self.noise_clip = exploration_noise, target_noise, noise_clip
        self.generators["update"] = generator

        self.actor_belief, self.critic_belief = belief(), belief()
        state_dim = self.actor_belief.state_dim
        self.actor = mlp(state_dim, pi_hidden, ranker.action_dim)
        self.critics = Critics(2, state_dim + ranker.action_dim, q_hidden)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.register_buffer("actor_loss", torch.zeros(()))  # of the last update of the policy
        self.add_optimizer("critic", self.critics, self.critic_belief, lr=q_lr)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        action = self.actor(state).tanh()
        if generator is None:
            return action
        return (action + self._noise(action, self.exploration_noise, generator)).clamp(-1, 1)

    def _noise(self, action: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
        return deviation * torch.randn(action.shape, generator=generator, device=action.device)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """One step of the critics, and every policy_delay-th time of policy and targets, on B whole trajectories."""
        assert batch.actions is not None
        policy_turn = self.step % self.policy_delay == 0
        # both beliefs in one scan; each loss reaches its own
        critic_state, actor_state = states_of([self.critic_belief, self.actor_belief], batch)

        # critics: y = r + gamma * min Q'(s', clip(pi'(s') + clip(noise))), and y = r in the last turn
        with torch.no_grad():
            next_action = self.target_actor(actor_state[:, 1:]).tanh()
            noise = self._noise(next_action, self.target_noise, self.generators["update"])
            next_action = (next_action + noise.clamp(-self.noise_clip, self.noise_clip)).clamp(-1, 1)
            target = batch.rewards
            target[:, :-1] += self.gamma * self.q_values(self.target_critics, critic_state[:, 1:], next_action).amin(0)
        q = self.q_values(self.critics, critic_state, batch.actions)
        critic_loss = (q - target).square().mean()
        loss = critic_loss

        # policy: the critics and their belief receive nothing from it
        if policy_turn:
            self.critics.requires_grad_(False)
            policy_action = self.actor(actor_state).tanh()
            actor_loss = -self.q_values(self.critics, critic_state.detach(), policy_action)[0].mean()
            self.critics.requires_grad_(True)
            self.actor_loss.copy_(actor_loss.detach())
            loss = loss + actor_loss

        names = ("critic", "actor") if policy_turn else ("critic",)
        for optimizer in self.optim.values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for name in names:
            self.optim[name].step()
        if policy_turn:
            polyak(self.critics, self.target_critics, self.tau)
            polyak(self.actor, self.target_actor, self.tau)

        return {
            "loss/critic": critic_loss,
            "loss/actor": self.actor_loss.clone(),
            "value/q": q.mean(),
            "value/target": target.mean(),
        }
