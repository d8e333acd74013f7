"""What an environment shows of its users."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Observation(NamedTuple):
    """What a user was shown and did: the only thing a policy may see."""

    slate: Tensor  # [B, S] int64, item ids
    clicks: Tensor  # [B, S] bool


class PrivilegedObservation(NamedTuple):
    """An observation for policies that declare that they see the simulator (`sees_hidden`)."""

    slate: Tensor
    clicks: Tensor
    hidden: Any  # what Env.hidden returns: a NamedTuple of the environment's hidden columns
