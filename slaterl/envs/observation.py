"""Observations: the part of the users' state that an environment shows."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Observation(NamedTuple):
    """A slate and the user's clicks on it. A policy may see nothing else."""

    slate: Tensor  # [B, S] int64, item ids
    clicks: Tensor  # [B, S] bool


class PrivilegedObservation(NamedTuple):
    """An observation for policies that declare that they see the simulator (`sees_hidden`)."""

    slate: Tensor
    clicks: Tensor
    hidden: Any  # the result of Env.hidden: a NamedTuple of the environment's hidden columns
