"""A few checkpoints of a run, spread over the scores of its validations."""

from __future__ import annotations

import math
from pathlib import Path

PREFIX = "kept-step"


class Kept:
    """Chooses which checkpoints `kept-step<k>.ckpt` stay. The choice depends on the scores only, so it can resume.

    Args:
        limit: largest number of checkpoints; 0 keeps none.

    Attributes:
        scores: the score of each kept checkpoint by its step, saved in last.ckpt.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.scores: dict[int, float] = {}

    def add(self, step: int, score: float) -> bool:
        """Add a checkpoint, and drop one if there are too many. Returns whether the new one stays.

        The lowest and the highest score stay. Of the others, that one goes whose neighbours are closest to each other.
        """
        if not self.limit or not math.isfinite(score):
            return False
        self.scores[step] = score
        if len(self.scores) > self.limit:
            ranked = sorted(self.scores, key=lambda at: (self.scores[at], at))
            gaps = {
                at: self.scores[above] - self.scores[below]
                for below, at, above in zip(ranked, ranked[1:], ranked[2:], strict=False)
            }
            del self.scores[min(gaps, key=lambda at: (gaps[at], -at))]  # of equal ones the later
        return step in self.scores

    def remove_others(self) -> None:
        """Remove the files of checkpoints that were dropped.

        Called after last.ckpt was written, so that a kill never leaves a last.ckpt that lists a missing file.
        """
        for file in self.folder.glob(f"{PREFIX}*.ckpt"):
            if int(file.stem.removeprefix(PREFIX)) not in self.scores:
                file.unlink(missing_ok=True)
