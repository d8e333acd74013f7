"""Beliefs: estimates of a user's state, which an agent reads to act and to learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        shared: whether the actor reads the critics' belief, see `for_actor_and_critics`.
    """

    state_dim: int
    sees_hidden: ClassVar[bool] = False
    shared: bool = False

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


class DetachedBelief(Belief):
    """Another network's belief, read without a gradient. It has no parameters of its own."""

    def __init__(self, source: Belief) -> None:
        super().__init__()
        self._source = [source]  # in a list, because its parameters belong to the other network
        self.state_dim = source.state_dim

    @property
    def source(self) -> Belief:
        return self._source[0]

    @property
    def memory_dim(self) -> int:
        return self.source.memory_dim

    def initial_state(self, num_users: int) -> Tensor:
        return self.source.initial_state(num_users)

    def step(self, observation: Observation | PrivilegedObservation, memory: Tensor) -> Tensor:
        return self.source.step(observation, memory)


def for_actor_and_critics(first: Belief, make: Callable[[], Belief]) -> tuple[Belief, Belief]:
    """Return the beliefs of actor and critics: the first and a second one, which `make` makes.

    If the first is to be shared, it is the critics', whose losses train it. The actor reads it without a gradient.
    """
    return (DetachedBelief(first), first) if first.shared else (first, make())


def shares_beliefs(agent: nn.Module) -> bool:
    """Return whether a network of the agent reads another's belief."""
    return any(isinstance(part, DetachedBelief) for part in agent.modules())


def states_of(beliefs: Sequence[Belief], batch: Trajectories) -> tuple[Tensor, ...]:
    """Return the states [B, H, state] of n beliefs of one class. The state at turn t has not seen the slate a_t."""
    sources = [belief.source if isinstance(belief, DetachedBelief) else belief for belief in beliefs]
    read = list(dict.fromkeys(sources))  # each once
    states = dict(zip(read, type(read[0]).read(read, batch).unbind(), strict=True))
    return tuple(
        states[source].detach() if isinstance(belief, DetachedBelief) else states[source]
        for belief, source in zip(beliefs, sources, strict=True)
    )


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
