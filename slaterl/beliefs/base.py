"""What an agent knows of its users: the state that it acts and learns on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation


class Belief(nn.Module):
    """Turns what was observed into states. Training (`states`) and acting (`step`) must agree.

    Attributes:
        state_dim: width of a state.
        sees_hidden: whether it reads the simulator's hidden state instead of observations.
    """

    state_dim: int
    sees_hidden: ClassVar[bool] = False

    def initial_state(self, num_users: int) -> Tensor:
        """[B, state], before anything was observed."""
        raise NotImplementedError

    def step(self, observation: Observation | PrivilegedObservation, state: Tensor) -> Tensor:
        """Read one observation of B users: states [B, state] -> [B, state]."""
        raise NotImplementedError

    @classmethod
    def read(cls, beliefs: Sequence[Belief], batch: Trajectories) -> Tensor:
        """States of n beliefs of this class as each turn of B trajectories begins, [n, B, H, state]."""
        raise NotImplementedError


def states_of(beliefs: Sequence[Belief], batch: Trajectories) -> Tensor:
    """States of n beliefs of one kind, [n, B, H, state]: at turn t of what came before a_t, never of its slate."""
    return type(beliefs[0]).read(beliefs, batch)


class JoinedBeliefs:
    """Several beliefs as one that acts, states side by side [B, n * state]; for policies that read more than one."""

    def __init__(self, beliefs: Sequence[Belief]) -> None:
        self.beliefs = beliefs
        self.sees_hidden = beliefs[0].sees_hidden

    def initial_state(self, num_users: int) -> Tensor:
        return torch.cat([belief.initial_state(num_users) for belief in self.beliefs], dim=1)

    def step(self, observation: Observation | PrivilegedObservation, state: Tensor) -> Tensor:
        parts = zip(self.beliefs, state.chunk(len(self.beliefs), dim=1), strict=True)
        return torch.cat([belief.step(observation, part) for belief, part in parts], dim=1)
