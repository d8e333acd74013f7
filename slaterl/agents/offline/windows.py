"""Windows of frames: what sequence models read instead of a belief, while they learn and while they act."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slaterl.beliefs.base import Belief
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.rankers.base import Ranker


class Context(NamedTuple):
    """K frames of B users, one after the other."""

    slates: Tensor  # [B, K, S]
    clicks: Tensor  # [B, K, S]
    turn: Tensor  # [B, K] turn at which each frame is o_t; below zero outside of the episode

    def actions(self, ranker: Ranker) -> Tensor:
        """Return the actions [B, K, A] that a ranker reads from the slates, without the limits of its box."""
        return ranker.place_of(self.slates.flatten(0, 1)).unflatten(0, self.turn.shape)


class ContextWindow(Belief):
    """The last K frames as one row of numbers, with the counts of frames and clicks so far.

    A frame holds its slate, its clicks, and the action that the ranker reads from the slate. So each is read once.
    """

    def __init__(self, length: int, slate_size: int, ranker: Ranker) -> None:
        super().__init__()
        self._zeros: Tensor
        self._ranker = [ranker]  # in a list, because its parameters belong to the agent
        self.length = length
        self.parts = (slate_size, slate_size, ranker.action_dim)
        self.state_dim = length * sum(self.parts) + 2
        self.register_buffer("_zeros", torch.zeros(self.state_dim), persistent=False)

    def initial_state(self, num_users: int) -> Tensor:
        return self._zeros.expand(num_users, -1)

    def step(self, observation: Observation | PrivilegedObservation, state: Tensor) -> Tensor:
        frames, count, clicks = state[:, :-2], state[:, -2:-1], state[:, -1:]
        action = self._ranker[0].place_of(observation.slate)
        new = torch.cat([observation.slate.to(state.dtype), observation.clicks.to(state.dtype), action], dim=1)
        earned = observation.clicks.sum(1, keepdim=True) * (count > 0)  # no policy chose frame 0
        return torch.cat([frames[:, new.shape[1] :], new, count + 1, clicks + earned], dim=1)

    def read_state(self, state: Tensor) -> tuple[Context, Tensor, Tensor]:
        """Split states [B, state] into the context, the action of each slate [B, K, A] and the clicks so far [B]."""
        slates, clicks, actions = state[:, :-2].unflatten(1, (self.length, -1)).split(self.parts, dim=2)
        turn = state[:, -2:-1].long() - torch.arange(self.length, 0, -1, device=state.device)
        return Context(slates.long(), clicks, turn), actions, state[:, -1]


def random_turns(batch: Trajectories, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a turn of each of B sessions, uniformly. Return turns [B, 1] and the sessions' lengths [B, 1]."""
    length = batch.mask.sum(1, keepdim=True)
    drawn = torch.rand(len(batch), 1, generator=generator, device=length.device)
    return (drawn * length).long(), length


class Window(NamedTuple):
    """K turns of each of B sessions, some of them outside."""

    users: Tensor  # [B, 1]
    turns: Tensor  # [B, K], moved to the nearest turn of the longest session
    there: Tensor  # [B, K] whether the turn belongs to the session

    @classmethod
    def of(cls, batch: Trajectories, turn: Tensor, length: Tensor) -> Window:
        """Return the window of turns [B, K] of sessions of lengths [B, 1]."""
        users = torch.arange(len(batch), device=turn.device).unsqueeze(1)
        horizon = batch.slates.shape[1] - 1
        return cls(users, turn.clamp(0, horizon - 1), (turn >= 0) & (turn < length))

    def cut(self, column: Tensor) -> Tensor:
        """Return the part [B, K, ...] of a column [B, H, ...]. Outside of the session it means nothing."""
        return column[self.users, self.turns]

    def context(self, batch: Trajectories) -> Context:
        """Return the frames o_t of the turns."""
        return Context(self.cut(batch.slates), self.cut(batch.clicks), self.turns.where(self.there, -1))
