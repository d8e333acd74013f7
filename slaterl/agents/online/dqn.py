"""Deep Q-learning with a value for each item.

Mnih et al. 2015, with the double target of van Hasselt et al., "Deep Reinforcement Learning with Double Q-learning",
arXiv 1509.06461. The slate is the top k of Q.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from slaterl.agents.base import ItemAgent
from slaterl.agents.losses import bootstrap, continuing_turns, mean, valid_turns
from slaterl.beliefs.base import Belief, states_of
from slaterl.bounds import Fraction, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.networks import mlp, polyak, target_of
from slaterl.rollout import Decision


def decaying(start: float, end: float, decay: float, step: int) -> float:
    """Return end + (start - end) * exp(-step / decay): a probability of exploring that falls while an agent learns."""
    return end + (start - end) * math.exp(-step / decay)


class DQN(ItemAgent):
    """Q(s, i) of every item i: its own click, plus the discounted value of the next slate.

    Q minimises (Q(s, i) - y_i)^2 over the items shown. y_i = click_i + gamma * mean over j of Q'(s', j), where j are
    the items of the next slate by Q. With probability epsilon a user sees a random slate, otherwise the top k of Q.

    Args:
        num_items, slate_size: sizes of the environment.
        belief: makes the belief that Q reads; both are trained together.
        gamma: discount.
        tau: Polyak rate of the target network, applied at every update.
        q_lr: Adam's learning rate; q_hidden: widths of the hidden layers.
        epsilon_start, epsilon_end, epsilon_decay: epsilon at step t is end + (start - end) * exp(-t / decay).
    """

    TERMS: ClassVar = ("loss/critic", "value/q", "value/target", "policy/epsilon")
    CREDITS_CLICKS: ClassVar = True

    def __init__(
        self,
        *,
        num_items: int,
        slate_size: int,
        belief: Callable[[], Belief],
        gamma: Fraction,
        tau: Fraction,
        q_lr: Positive,
        q_hidden: Widths,
        epsilon_start: Fraction,
        epsilon_end: Fraction,
        epsilon_decay: Positive,
    ) -> None:
        super().__init__(num_items, slate_size)
        self.gamma, self.tau = gamma, tau
        self.epsilon_start, self.epsilon_end, self.epsilon_decay = epsilon_start, epsilon_end, epsilon_decay
        self.critic_belief = belief()
        self.critic = mlp(self.critic_belief.state_dim, q_hidden, num_items)
        self.target_critic = target_of(self.critic)
        self.add_optimizer("critic", self.critic, self.critic_belief, lr=q_lr)

    @property
    def acting_belief(self) -> Belief:
        return self.critic_belief

    @property
    def epsilon(self) -> float:
        """Probability of a random slate at this step."""
        return decaying(self.epsilon_start, self.epsilon_end, self.epsilon_decay, self.step)

    def slate_of(self, values: Tensor) -> Tensor:
        """Return the slates [..., S] of the largest values [..., N], best first."""
        return values.topk(self.slate_size, dim=-1).indices

    def decide(
        self, state: Tensor, observation: Observation | PrivilegedObservation, generator: torch.Generator | None
    ) -> Decision:
        return Decision(self.explore(self.slate_of(self.critic(state)), generator))

    def explore(self, slate: Tensor, generator: torch.Generator | None) -> Tensor:
        """Replace each of the slates [B, S] by a random one with probability epsilon; without a generator, keep all."""
        if generator is None:
            return slate
        random = torch.randint(self.num_items, slate.shape, generator=generator, device=slate.device)
        chance = torch.rand(len(slate), 1, generator=generator, device=slate.device)
        return torch.where(chance < self.epsilon, random, slate)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of Q and its target on B whole trajectories."""
        shown, clicks = batch.slates[:, 1:].long(), batch.clicks[:, 1:].float()  # [B, H, S]
        (state,) = states_of([self.critic_belief], batch)  # [B, H, state]
        values = self.critic(state)  # [B, H, N]

        # y_i = click_i + gamma * mean over j of Q'(s', j), where j are the items of the next slate by Q
        with torch.no_grad():
            following = self.slate_of(values[:, 1:])
            next_value = self.target_critic(state[:, 1:]).gather(2, following).mean(2, keepdim=True)
            target = bootstrap(clicks, next_value, self.gamma, continuing_turns(batch))
        q = values.gather(2, shown)
        mask = valid_turns(batch)
        loss = mean((q - target).square(), mask, of_vectors=True)
        self.minimise("critic", loss)
        polyak(self.critic, self.target_critic, self.tau)

        return {
            "loss/critic": loss,
            "value/q": mean(q, mask, of_vectors=True),
            "value/target": mean(target, mask, of_vectors=True),
            "policy/epsilon": loss.new_full((), self.epsilon),
        }
