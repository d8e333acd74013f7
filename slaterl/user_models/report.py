"""The figures of a user model's page."""

from __future__ import annotations

from typing import Any

from slaterl.user_models.coverage import Coverage, covered
from slaterl.user_models.ensemble import Ensemble, Sessions
from slaterl.user_models.quality import advantage, baselines, quality, quality_of_leaving


def report(learner: Ensemble, sessions: Sessions, seen: Coverage, num_items: int) -> dict[str, Any]:
    """Measure the best members on the test sessions, next to the baselines.

    Args:
        seen: coverage of the training sessions.

    Returns:
        quality, baselines, advantage over the best baseline, and leaving (None if nobody leaves), see quality.py;
        coverage; and the numbers of sessions.
    """
    test = sessions.test
    clicks, leaving = learner.chances(test)
    own = quality(clicks, test)
    expected = baselines(sessions.training, test.slates[:, 1:], num_items)
    others = {name: quality(chance, test) for name, chance in expected.items()}
    best = min(others, key=lambda name: others[name]["log_loss"])
    cells = num_items * test.slates.shape[2]
    return {
        "advantage": advantage(clicks, expected[best], test),
        "best_baseline": best,
        "quality": own,
        "baselines": others,
        "leaving": None if leaving is None else quality_of_leaving(leaving, test),
        "cells": cells,
        "known_cells": len(seen.cells) / cells,
        **covered(seen, test, num_items),
        "sessions": len(sessions.training),
        "test_sessions": len(test),
        "test_turns": test.turns,
    }
