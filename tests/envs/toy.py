"""An environment with no topics and another reward than clicks, as a stranger would add it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slaterl.envs.env import Env
from slaterl.envs.observation import Observation


class Toy(Env):
    """Users like every `period`-th item; a click pays `bonus` in the first slot and 1 in any other."""

    reward_is_clicks = False

    def __init__(self, *, period: int, bonus: float, **common: Any) -> None:
        super().__init__(**common)
        self.period = period
        self.worth = torch.ones(self.slate_size, device=self.device)
        self.worth[0] = bonus

    def reset(self, num_users: int, *, generator: torch.Generator) -> Observation:
        self.generator, self.turn = generator, 0
        self.liked = torch.randint(self.period, (num_users, 1), generator=generator, device=self.device)
        return self._answer(self.first_slate.expand(num_users, -1))

    def step(self, slate: Tensor, *, oracle_slots: Tensor | None = None) -> tuple[Observation, Tensor, bool]:
        self.turn += 1
        seen = self._answer(slate)
        return seen, (seen.clicks * self.worth).sum(1), self.turn == self.episode_length

    def _answer(self, slate: Tensor) -> Observation:
        likes = slate % self.period == self.liked
        chance = torch.rand(slate.shape, generator=self.generator, device=self.device)
        return Observation(slate, chance < torch.where(likes, 0.8, 0.1))
