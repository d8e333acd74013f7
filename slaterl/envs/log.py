"""The environment of a log: sizes and items, and no simulator."""

from __future__ import annotations

import torch

from slaterl.bounds import Count
from slaterl.envs.env import Env
from slaterl.envs.observation import Observation
from slaterl.errors import UserError


class NoSimulatorError(UserError):
    """A policy was to act for the users of a log."""


class LoggedEnv(Env):
    """The users of a log. It cannot be acted in, because nobody knows what they would have clicked.

    Args:
        num_items, slate_size, episode_length: sizes of the log; None until it was read.
        items: fingerprint of its item ids, see data.vocabulary; None until it was read.

    Raises:
        UserError: the log was not read.
    """

    simulates = False

    def __init__(
        self,
        *,
        name: str,
        num_items: Count | None,
        slate_size: Count | None,
        episode_length: Count | None,
        items: str | None,
        device: str | torch.device = "cpu",
    ) -> None:
        if num_items is None or slate_size is None or episode_length is None or items is None:
            raise UserError(f"env={name}: the sizes of a log are known only after it was read; use dataset=log")
        super().__init__(
            name=name, num_items=num_items, slate_size=slate_size, episode_length=episode_length, device=device
        )
        self.fingerprint = items

    def reset(self, num_users: int, *, generator: torch.Generator) -> Observation:
        raise NoSimulatorError(
            f"env={self.name}: a log has no simulator to act in; use offline.validation=user_model, fqe or none"
        )
