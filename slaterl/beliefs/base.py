"""Beliefs: estimates of a user's state, which an agent reads to act and to learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation


class Belief(nn.Module):
    """Turn observations into states. Training (`read`) and acting (`step`) must agree.

    Acting keeps a memory [B, memory] of B users. It begins with the state, and is the state unless a belief says so.

    Attributes:
        state_dim: width of a state.
        sees_hidden: whether it reads the simulator's hidden state instead of observations.
    """

    state_dim: int
    sees_hidden: ClassVar[bool] = False

    @property
    def memory_dim(self) -> int:
        """Width of a memory: of the state, and of what else acting must keep."""
        return self.state_dim

    def initial_state(self, num_users: int) -> Tensor:
        """Return the memory [B, memory] before the first observation."""
        raise NotImplementedError

    def step(self, observation: Observation | PrivilegedObservation, memory: Tensor) -> Tensor:
        """Update the memories [B, memory] of B users with one observation. Returns [B, memory]."""
        raise NotImplementedError

    def state_of(self, memory: Tensor) -> Tensor:
        """Return the states [B, state] of memories [B, memory]."""
        return memory[:, : self.state_dim]

    @classmethod
    def read(cls, beliefs: Sequence[Belief], batch: Trajectories) -> Tensor:
        """Return the states of n beliefs of this class before each turn of B trajectories, [n, B, H, state]."""
        raise NotImplementedError


def states_of(beliefs: Sequence[Belief], batch: Trajectories) -> Tensor:
    """Return the states of n beliefs of one class, [n, B, H, state]. The state at turn t has not seen the slate a_t."""
    return type(beliefs[0]).read(beliefs, batch)


class JoinedBeliefs:
    """Several beliefs that act as one, with concatenated memories and states [B, n * state]."""

    def __init__(self, beliefs: Sequence[Belief]) -> None:
        self.beliefs = beliefs
        self.sees_hidden = beliefs[0].sees_hidden

    def initial_state(self, num_users: int) -> Tensor:
        return torch.cat([belief.initial_state(num_users) for belief in self.beliefs], dim=1)

    def step(self, observation: Observation | PrivilegedObservation, memory: Tensor) -> Tensor:
        return torch.cat([belief.step(observation, part) for belief, part in self._parts(memory)], dim=1)

    def state_of(self, memory: Tensor) -> Tensor:
        return torch.cat([belief.state_of(part) for belief, part in self._parts(memory)], dim=1)

    def _parts(self, memory: Tensor) -> list[tuple[Belief, Tensor]]:
        parts = memory.split([belief.memory_dim for belief in self.beliefs], dim=1)
        return list(zip(self.beliefs, parts, strict=True))
