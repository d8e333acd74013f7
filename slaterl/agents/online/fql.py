"""FQL in the simulator: the same update on what the agent shows itself."""

from __future__ import annotations

from typing import ClassVar

from slaterl.agents.offline.fql import FQL


class OnlineFQL(FQL):
    """FQL that goes on in the simulator. It collects with mu(s, z), z ~ N(0, 1). The flow imitates its replay buffer.

    As in the paper, nothing else changes online.

    Args: see FQL.
    """

    LEARNS_FROM: ClassVar = "simulator"
