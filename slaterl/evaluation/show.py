"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slaterl.console import table, with_interval


def show_result(title: str, tested: str, result: Mapping[str, Any]) -> None:
    """Show the tested policy next to the baselines.

    Args:
        tested: label of the policy behind the result's `test_...` entries.
        result: flat, with the entries of `anchors` and of the best constant slate. A baseline without entries gets no
            row. Exploration gets a column if the tested policy explores.
    """
    random = [name.removeprefix("random_") for name in result if name.startswith("random_")]
    # the environment's own, in addition to the measures of all environments
    own = [name for name in random if name not in ("return", "interval", "clicks_per_turn", "distinct_items")]
    ways = ["_sampled"] if "test_return_sampled" in result else []
    rows = []
    labels = {
        "test_": tested,
        "best_constant_": "best constant slate",
        "oracle_": "short-term oracle",
        "random_": "random slates",
    }
    for prefix, label in labels.items():
        if prefix + "return" not in result:
            continue
        val = with_interval(result["val_return"], None) if prefix == "test_" and "val_return" in result else ""
        returned = [_return(result, prefix, way) for way in ("", *ways)]
        measured = [_number(name, result[prefix + name]) for name in own]
        rows.append([label, val, *returned, *measured, f"{result[prefix + 'distinct_items']:,}"])
    headers = [name.removesuffix("_share").replace("_", " ") for name in own]  # a share shows as a percentage
    table(title, ["", "val", "test ± 95 %", *(way.removeprefix("_") for way in ways), *headers, "items"], rows)


def _return(result: Mapping[str, Any], prefix: str, way: str) -> str:
    """Format a return with its interval; empty for a policy that does not act in this way."""
    if f"{prefix}return{way}" not in result:
        return ""
    return with_interval(result[f"{prefix}return{way}"], result[f"{prefix}interval{way}"])


def _number(name: str, value: float) -> str:
    """Format a measure of the environment; a share becomes a percentage."""
    return f"{value:.0%}" if name.endswith("_share") else f"{value:.2f}"
