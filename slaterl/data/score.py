"""Returns on a scale that compares environments."""

from __future__ import annotations


def normalised(value: float | None, random: float | None, expert: float | None) -> float | None:
    """A return on the scale where 0 are random slates and 100 is the expert; None where that says nothing."""
    if value is None or random is None or expert is None or expert <= random:
        return None
    return 100 * (value - random) / (expert - random)
