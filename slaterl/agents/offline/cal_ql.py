"""Cal-QL: CQL that does not push values below those of the data, so that learning can go on in the simulator.

Nakamoto et al., "Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online Fine-Tuning", arXiv 2303.05479.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slaterl.agents.losses import at, discounted_to_go
from slaterl.agents.offline.actor_critic import Turns
from slaterl.agents.offline.cql import CQL


class CalQL(CQL):
    """CQL whose penalty reads max(Q(s, a), V(s)) at the policy's actions (equation 5.1 of the paper).

    V is the value of the data's policy, estimated by the discounted return to go of the trajectory, as the authors do.
    Where Q is below it, the penalty pushes Q no further. Uniform actions have no such bound, as in the authors' code.
    Neither have sessions that the log cut, whose return to go is unknown.

    Args: see CQL.
    """

    def own_values(self, q: Tensor, turns: Turns, chosen: Tensor) -> Tensor:
        to_go = discounted_to_go(turns.reward, self.gamma)
        if turns.complete is not None:
            to_go = to_go.where(turns.complete, -torch.inf)
        return torch.maximum(q, at(to_go, chosen))
