"""Normalised scores: returns on a scale that is comparable between environments."""

from __future__ import annotations

import math


def normalised(value: float | None, random: float | None, expert: float | None) -> float | None:
    """Scale a return so that random slates score 0 and the expert scores 100.

    Return None if a return is unknown, or if the expert is no better than random slates.
    """
    if value is None or random is None or expert is None or expert <= random:
        return None
    return 100 * (value - random) / (expert - random)


def half_width(deviation: float, count: int) -> float | None:
    """Half-width of the 95 % interval of a mean over `count` values; None for one value."""
    return 1.96 * deviation / math.sqrt(count) if count > 1 else None
