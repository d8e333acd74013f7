"""The tables that end a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slaterl.console import table
from slaterl.evaluation.evaluate import MEASURES


def show_result(title: str, tested: str, result: Mapping[str, Any]) -> None:
    """The table that ends a run: the tested policy between what every policy is compared with.

    Args:
        tested: what the policy behind the result's `test_...` entries is called.
        result: flat, with the entries of `anchors`.
    """
    rows = []
    for label, prefix in ((tested, "test_"), ("short-term oracle", "oracle_"), ("random slates", "random_")):
        mean, interval, per_turn, bored, items = (result[prefix + name] for name in MEASURES)
        val = f"{result['val_return']:.1f}" if prefix == "test_" and "val_return" in result else ""
        rows.append([label, val, f"{mean:.1f} ± {interval:.1f}", f"{per_turn:.2f}", f"{bored:.0%}", f"{items:,}"])
    table(title, ["", "val", "test ± 95 %", "clicks/turn", "bored turns", "items"], rows)
