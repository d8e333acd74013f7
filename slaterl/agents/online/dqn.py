"""Deep Q-learning with one value for each item.

Mnih et al. 2015, with the double target of van Hasselt et al., "Deep Reinforcement Learning with Double Q-learning",
arXiv 1509.06461. The slate is the top k of Q; an item's value is its own click and what follows the slate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from slaterl.agents.base import ItemAgent
from slaterl.beliefs.base import Belief, states_of
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.errors import check_positive, check_range, check_widths
from slaterl.networks import mlp, polyak
from slaterl.rollout import Decision


class DQN(ItemAgent):
    """Q(s, i) of every item i; with probability epsilon a user is shown a random slate, else the top k of Q.

    Args:
        belief: makes the belief that Q reads, learned with it.
        gamma: discount; tau: share of the online network that enters the target at every update.
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
        gamma: float,
        tau: float,
        q_lr: float,
        q_hidden: Sequence[int],
        epsilon_start: float,
        epsilon_end: float,
        epsilon_decay: float,
    ) -> None:
        check_range(0, 1, **{"agent.gamma": gamma, "agent.tau": tau})
        check_range(0, 1, **{"agent.epsilon_start": epsilon_start, "agent.epsilon_end": epsilon_end})
        check_positive(**{"agent.q_lr": q_lr, "agent.epsilon_decay": epsilon_decay})
        check_widths(**{"agent.q_hidden": q_hidden})
        super().__init__(num_items, slate_size)
        self.gamma, self.tau = gamma, tau
        self.epsilon_start, self.epsilon_end, self.epsilon_decay = epsilon_start, epsilon_end, epsilon_decay
        self.critic_belief = belief()
        self.critic = mlp(self.critic_belief.state_dim, q_hidden, num_items)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.add_optimizer("critic", self.critic, self.critic_belief, lr=q_lr)

    @property
    def acting_belief(self) -> Belief:
        return self.critic_belief

    @property
    def epsilon(self) -> float:
        return self.epsilon_end + (self.epsilon_start - self.epsilon_end) * math.exp(-self.step / self.epsilon_decay)

    def slate_of(self, values: Tensor) -> Tensor:
        """Values of all items [..., N] -> slates [..., S], best first."""
        return values.topk(self.slate_size, dim=-1).indices

    def decide(
        self, state: Tensor, observation: Observation | PrivilegedObservation, generator: torch.Generator | None
    ) -> Decision:
        return Decision(self.explore(self.slate_of(self.critic(state)), generator))

    def explore(self, slate: Tensor, generator: torch.Generator | None) -> Tensor:
        """Slates [B, S], of which each is with probability epsilon a random one instead."""
        if generator is None:
            return slate
        random = torch.randint(self.num_items, slate.shape, generator=generator, device=slate.device)
        chance = torch.rand(len(slate), 1, generator=generator, device=slate.device)
        return torch.where(chance < self.epsilon, random, slate)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """One step of Q and its target on B whole trajectories."""
        shown, clicks = batch.slates[:, 1:].long(), batch.clicks[:, 1:].float()  # [B, H, S]
        (state,) = states_of([self.critic_belief], batch)  # [B, H, state]
        values = self.critic(state)  # [B, H, N]

        # y_i = click_i + gamma * mean over j in the next slate, chosen by Q, of Q'(s', j); at the end y_i = click_i
        with torch.no_grad():
            following = self.slate_of(values[:, 1:])
            next_value = self.target_critic(state[:, 1:]).gather(2, following).mean(2, keepdim=True)
            target = clicks.clone()
            target[:, :-1] += self.gamma * next_value
        q = values.gather(2, shown)
        loss = mse_loss(q, target)
        self.minimise("critic", loss)
        polyak(self.critic, self.target_critic, self.tau)

        return {
            "loss/critic": loss,
            "value/q": q.mean(),
            "value/target": target.mean(),
            "policy/epsilon": loss.new_tensor(self.epsilon),
        }
