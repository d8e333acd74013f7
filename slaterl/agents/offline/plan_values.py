"""What guides plans, or chooses among them: returns, the sign of an advantage, and scores of candidates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slaterl.agents.losses import (
    bootstrap,
    complete_turns,
    continuing_turns,
    discounted_to_go,
    expectile_loss,
    mean,
    percentile,
    valid_turns,
)
from slaterl.agents.offline.base import MakeBelief, OfflineAgent, of_frames
from slaterl.agents.offline.windows import ContextWindow, Window
from slaterl.beliefs.base import states_of
from slaterl.data.trajectories import Trajectories
from slaterl.networks import Critics, mlp, target_of
from slaterl.rankers.base import Ranker

LUCKY = 0.01  # share of the turns at either end whose returns do not set the scale


class PlanValues(OfflineAgent):
    """An agent that reads a window of frames, and has values of turns or of plans.

    A subclass calls `build_advantage` or `build_scores` if it needs critics. They read a belief of their own.

    Args:
        ranker, generator: see OfflineAgent.
        window: what the planner reads.
        gamma: discount.
        expectile: of V's loss.

    Attributes:
        longest: [] turns of the longest session of the data.
        low, high: [] what 0 and 1 of `ahead` are in rewards per turn, set by `prepare`.
        lowest, highest: [] smallest and largest reward of the data.
    """

    longest: Tensor
    low: Tensor
    high: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(
        self, ranker: Ranker, window: ContextWindow, generator: torch.Generator, gamma: float, expectile: float
    ) -> None:
        super().__init__(ranker, lambda: window, generator)
        self.gamma, self.expectile = gamma, expectile
        for name in ("longest", "low", "high", "lowest", "highest"):
            self.register_buffer(name, torch.zeros(()) if name.startswith("low") else torch.ones(()))

    def build_advantage(self, belief: MakeBelief, count: int, hidden: Sequence[int], layer_norm: bool) -> None:
        """Build critics Q(s, a) with their targets, and V(s)."""
        self._build(belief, count, hidden, layer_norm, self.ranker.action_dim)
        self.target_critics = target_of(self.critics)
        self.value = mlp(self.critic_belief.state_dim, hidden, 1, layer_norm)

    def build_scores(
        self, belief: MakeBelief, count: int, hidden: Sequence[int], layer_norm: bool, frames: int
    ) -> None:
        """Build critics of a state and the actions of a plan's F frames."""
        self._build(belief, count, hidden, layer_norm, frames * self.ranker.action_dim)

    def _build(self, belief: MakeBelief, count: int, hidden: Sequence[int], layer_norm: bool, of_actions: int) -> None:
        self.critic_belief = of_frames(belief)
        self.critics = Critics(count, self.critic_belief.state_dim + of_actions, hidden, layer_norm)

    @torch.no_grad()
    def prepare(self, data: Trajectories) -> Trajectories:
        data = super().prepare(data)
        mask, complete = valid_turns(data), complete_turns(data)
        rewards = data.rewards
        self.lowest.copy_(rewards.amin() if mask is None else rewards.where(mask, torch.inf).amin())
        self.highest.copy_(rewards.amax() if mask is None else rewards.where(mask, -torch.inf).amax())
        self.longest.copy_(data.mask.sum(1).amax())
        ahead = self._mean_ahead(data)
        low, high = (percentile(ahead, share, complete) for share in (LUCKY, 1 - LUCKY))
        largest = ahead.amax() if complete is None else ahead.where(complete, 0.0).amax()
        self.low.copy_(low)
        self.high.copy_(high.where(high > low, largest))  # where hardly any turn has a reward
        return data

    def _mean_ahead(self, batch: Trajectories) -> Tensor:
        turn = torch.arange(batch.rewards.shape[1], device=batch.slates.device)
        left = (self.longest - turn).clamp(min=1)
        return discounted_to_go(batch.rewards, self.gamma) * (1 - self.gamma) / (1 - self.gamma**left)

    def ahead(self, batch: Trajectories) -> Tensor:
        """Return how well each turn [B, H] went on: 0 at the data's 1st percentile, 1 at its 99th.

        It is the mean of the rewards to the end, weighted by gamma^k. A session that ended earlier than the longest
        one has rewards of 0 from there on. Unlike a return to go, the mean has the same scale at every turn.
        """
        return (self._mean_ahead(batch) - self.low) / (self.high - self.low).clamp(min=1e-6)

    def scaled(self, rewards: Tensor) -> Tensor:
        """Map rewards [...] of the data to [-1, 1]."""
        width = (self.highest - self.lowest).clamp(min=1e-6)
        return 2 * (rewards - self.lowest) / width - 1

    def advantage(self, batch: Trajectories) -> tuple[Tensor, Tensor]:
        """Return the loss of critics and V, as IQL's, and advantages min Q'(s, a) - V(s) of B trajectories.

        Returns:
            the loss []; advantages [B, H or more], without gradient. Columns after H are room for a last state.
        """
        batch = batch.with_room()
        assert batch.actions is not None
        mask = valid_turns(batch)
        (state,) = states_of([self.critic_belief], batch)
        value = self.value(state).squeeze(-1)
        with torch.no_grad():
            target = bootstrap(batch.rewards, value[:, 1:], self.gamma, continuing_turns(batch))
            target_q = self.q_values(self.target_critics, state, batch.actions).amin(0)
        q = self.q_values(self.critics, state, batch.actions)
        advantage = target_q - value
        loss = mean((q - target).square(), mask) + mean(expectile_loss(advantage, self.expectile), mask)
        return loss, advantage.detach()

    def score_loss(self, batch: Trajectories, start: Tensor, window: Window, weight: Tensor) -> Tensor:
        """Return the mean (Q(s, plan) - ahead)^2 [] of the actions that were taken from turns `start` [B, 1] on.

        The plan is the window of F turns; actions after a session's end are zeros.

        Args:
            weight: [B, 1] weight of a session's turn; 0 if its return is not known.
        """
        assert batch.actions is not None
        (state,) = states_of([self.critic_belief], batch)
        taken = window.cut(self.ranker.to_latent(batch.actions)).where(window.there.unsqueeze(2), 0.0)
        found = self.critics(state[window.users, start].squeeze(1), taken.flatten(1))  # [num_critics, B]
        target = self.ahead(batch)[window.users, start]
        return mean((found.unsqueeze(2) - target).square(), weight)

    def scores(self, state: Tensor, actions: Tensor) -> Tensor:
        """Score plans' actions [n, B, F, A] at the critics' states [B, state]: [n, B], in discounted rewards.

        The scale is that of a return from the first turn on, so that its softmax is as Diffusion-QL's.
        """
        plans = self.ranker.to_latent(actions).flatten(2)
        score = self.critics(state.expand(len(plans), -1, -1), plans).amin(0)
        turns = (1 - self.gamma**self.longest) / (1 - self.gamma)
        return score * (self.high - self.low) * turns
