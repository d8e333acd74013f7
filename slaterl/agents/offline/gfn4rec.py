"""GFN4Rec on recorded slates: see slaterl/agents/list_flow.py."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from slaterl.agents.list_flow import ListFlow
from slaterl.agents.offline.base import MakeBelief, of_frames


class OfflineGFN4Rec(ListFlow):
    """ListFlow that learns from recorded slates and their rewards. Its networks fit agent=gfn4rec, to go on online.

    Args:
        belief: makes a belief, which may read frames alone.
        others: see ListFlow.
    """

    LEARNS_FROM: ClassVar = "dataset"

    def __init__(self, *, belief: MakeBelief, **others: Any) -> None:
        super().__init__(belief=partial(of_frames, belief), **others)
