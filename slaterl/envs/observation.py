"""What is seen of the users of an environment."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Observation(NamedTuple):
    """What a user was shown and did: the only thing a policy may see."""

    slate: Tensor  # [B, S] int64, item ids
    clicks: Tensor  # [B, S] bool


class Hidden(NamedTuple):
    """What the next slate will meet: for upper bounds, methods that know the simulator, and for looking at users."""

    user: Tensor  # [B, D] the user's own taste
    bored: Tensor  # [B, K] bool, the topics that will be bored while the next slate is shown
    effective: Tensor  # [B, D] the taste that scores it: without the bored topics, the short-term topic boosted


class PrivilegedObservation(NamedTuple):
    """An observation for policies that say that they see the simulator (`sees_hidden`)."""

    slate: Tensor
    clicks: Tensor
    hidden: Hidden
