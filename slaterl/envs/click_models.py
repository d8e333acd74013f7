"""Click models: which slots of a slate a user examines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slaterl.bounds import Fraction


@dataclass(frozen=True, kw_only=True)
class PositionBasedModel:
    """Position-based click model: P(click on slot r) = attractiveness_r * examination_r, slots independent.

    examination_r = (1 - bottom_weight) * decay^r + bottom_weight * decay^(S-1-r), ranks r = 0..S-1: from the top
    (bottom_weight 0), or from both ends (0.5).
    """

    decay: Fraction
    bottom_weight: Fraction

    def examination(self, slate_size: int) -> Tensor:
        """Return the probability [S] that a user examines each rank."""
        from_top = self.decay ** torch.arange(slate_size, dtype=torch.float32)
        return (1 - self.bottom_weight) * from_top + self.bottom_weight * from_top.flip(0)
