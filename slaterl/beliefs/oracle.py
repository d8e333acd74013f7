"""The simulator's own state instead of a belief, as an upper bound on the value of any belief."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from slaterl.beliefs.base import Belief
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.errors import UserError


class OracleState(Belief):
    """The users' whole state before the next slate, see Env.full_state.

    Raises:
        UserError: the environment does not reveal it.
    """

    sees_hidden: ClassVar = True

    _zeros: Tensor

    def __init__(self, *, env: Env) -> None:
        super().__init__()
        if env.full_state_dim is None or env.hidden_columns is None:
            raise UserError(f"belief=none: env={env.name} does not reveal its users' state; use belief=gru")
        self.state_dim, self.full_state = env.full_state_dim, env.full_state
        self.register_buffer("_zeros", torch.zeros(self.state_dim), persistent=False)

    def initial_state(self, num_users: int) -> Tensor:
        return self._zeros.expand(num_users, -1)

    def step(self, observation: Observation | PrivilegedObservation, state: Tensor) -> Tensor:
        assert isinstance(observation, PrivilegedObservation)
        return self.full_state(observation.hidden._asdict())

    @classmethod
    def read(cls, beliefs: Sequence[Belief], batch: Trajectories) -> Tensor:
        first = beliefs[0]
        assert isinstance(first, OracleState)
        return first.full_state(batch.hidden).expand(len(beliefs), -1, -1, -1)
