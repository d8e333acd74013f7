"""Names of runs, parameters of agents and results stay what they are.

So finished runs are found, checkpoints load, and results can be compared over versions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slaterl.run import run_stage
from tests.golden import record
from tests.helpers import compose_config

HERE = Path(__file__).parent
# these depend on which of two nearly equal numbers is larger, and so on the processor
BY_PROCESSOR = ("distinct_items", "best_step")


def golden(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def test_names_of_runs() -> None:
    assert record.names() == golden("names")


def test_parameters_of_agents() -> None:
    assert record.parameters() == golden("parameters")


def test_results(tmp_path: Path) -> None:
    """Logging, pretraining, SAC, a dataset, TD3 + BC and an evaluation, at the smallest scale."""
    for overrides in (["stage=offline", "agent=td3_bc"], ["stage=evaluate", "agent=random"]):
        run_stage(compose_config("scale=smoke", "device=cpu", "threads=1", f"paths.root={tmp_path}", *overrides))
    found, expected = record.written(tmp_path), golden("results")
    assert len(found) == 6
    for name, entries in found.items():
        assert entries.keys() == expected[name].keys()
        for key, value in entries.items():
            if any(word in key for word in BY_PROCESSOR):
                continue
            if isinstance(value, float):  # to the bit only on one processor
                assert value == pytest.approx(expected[name][key], rel=0.3, abs=1.0), f"{name}: {key}"
            elif key == "metrics.csv":
                assert value[0] == expected[name][key][0] and len(value) == len(expected[name][key])
            elif key not in ("columns", "card.json"):
                assert value == expected[name][key], f"{name}: {key}"
