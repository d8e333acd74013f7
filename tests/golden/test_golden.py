"""Names of runs and parameters of agents stay what they are: finished runs stay found, checkpoints stay readable."""

from __future__ import annotations

import json
from pathlib import Path

from tests.golden import record

HERE = Path(__file__).parent


def test_names_of_runs() -> None:
    assert record.names() == json.loads((HERE / "names.json").read_text())


def test_parameters_of_agents() -> None:
    assert record.parameters() == json.loads((HERE / "parameters.json").read_text())
