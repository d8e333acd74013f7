"""An environment whose users leave: each has a patience of its own, which slates without a click use up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slaterl.envs.env import Env
from slaterl.envs.observation import Observation


class Leaving(Env):
    """A user clicks on every `period`-th item with probability 0.5, and leaves after 1 to 4 slates without a click."""

    ends_early = True

    def __init__(self, *, period: int, **common: Any) -> None:
        super().__init__(**common)
        self.period = period

    def reset(self, num_users: int, *, generator: torch.Generator) -> Observation:
        self.generator, self.turn = generator, 0
        self.patience = torch.randint(1, 5, (num_users,), generator=generator, device=self.device)
        return self._answer(self.first_slate.expand(num_users, -1))

    def step(self, slate: Tensor, *, oracle_slots: Tensor | None = None) -> tuple[Observation, Tensor, Tensor]:
        self.turn += 1
        seen = self._answer(slate)
        self.patience = self.patience - (~seen.clicks.any(1)).long()
        left = (self.patience <= 0) | (self.turn >= self.episode_length)
        return seen, seen.clicks.sum(1, dtype=torch.float32), left

    def _answer(self, slate: Tensor) -> Observation:
        chance = torch.rand(slate.shape, generator=self.generator, device=self.device)
        return Observation(slate, (slate % self.period == 0) & (chance < 0.5))
