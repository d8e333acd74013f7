"""No belief at all: the simulator's own state, as an upper bound of what a belief can be worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from slaterl.beliefs.base import Belief
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.envs.topic_rec import TopicRec


class OracleState(Belief):
    """The user's embedding and which topics are bored, [B, D + K], of the users as the next slate finds them."""

    sees_hidden: ClassVar = True

    def __init__(self, *, env: TopicRec) -> None:
        super().__init__()
        self.state_dim = env.num_topics * (env.topic_size + 1)
        self.register_buffer("_zeros", torch.zeros(self.state_dim), persistent=False)

    def initial_state(self, num_users: int) -> Tensor:
        return self._zeros.expand(num_users, -1)

    def step(self, observation: Observation | PrivilegedObservation, state: Tensor) -> Tensor:
        assert isinstance(observation, PrivilegedObservation)
        return torch.cat([observation.hidden.user, observation.hidden.bored.float()], dim=1)

    @classmethod
    def read(cls, beliefs: Sequence[Belief], batch: Trajectories) -> Tensor:
        state = torch.cat([batch.hidden["user"], batch.hidden["bored"].float()], dim=2)
        return state.expand(len(beliefs), -1, -1, -1)
