"""The labels of offline learning: actions that were recorded, or actions that the ranker reads from the slates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from slaterl.console import note
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.rankers.base import Ranker


def labelled(
    data: Trajectories, about: Mapping[str, Any], ranker: Ranker, wanted: Literal["auto", "recorded", "encoded"]
) -> Trajectories:
    """Return trajectories with the recorded actions [N, H, A], or without any: `OfflineAgent.prepare` reads them then.

    Recorded actions are those that the agent would give its ranker for the same slates, before any rounding to what
    the encoder can express. They mean this only for the ranker that they were recorded with, box included.

    Args:
        about: metadata of the dataset.
        ranker: the agent's, already trained.
        wanted: offline.actions.

    Raises:
        UserError: wanted=recorded, and they are missing or of another ranker.
    """
    why_not = _why_not(data, about, ranker)
    if wanted == "recorded" and why_not:
        raise UserError(f"offline.actions=recorded: {why_not}; use auto or encoded")
    if wanted == "auto" and why_not:
        note(
            f"offline.actions=auto: encoded, because {why_not}. Compare with agent=slate_bc, which imitates the slates "
            "themselves"
        )
    elif wanted == "auto":
        note("offline.actions=auto: recorded, because the dataset was collected through the agent's ranker")
    return dataclasses.replace(data, actions=None) if wanted == "encoded" or why_not else data


def _why_not(data: Trajectories, about: Mapping[str, Any], ranker: Ranker) -> str:
    """Return the reason why the recorded actions cannot be learned; empty if they can."""
    if data.actions is None:
        return "the dataset has no recorded actions"
    recorded, own = about.get("actions_of"), ranker.fingerprint()
    if recorded is None:
        return "the dataset does not say which ranker its actions belong to"
    return "" if recorded == own else f"the dataset's actions are of the ranker {recorded}, but the agent has {own}"
