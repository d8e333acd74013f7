"""Clicks of 0.03 a session are shown as such, and never as 0.0."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import pytest
import torch

from slaterl.console import with_interval
from slaterl.data.card import describe
from slaterl.data.card_page import as_markdown
from slaterl.data.trajectories import Trajectories
from slaterl.report.tables import shown
from slaterl.stages import estimated
from tests.helpers import ITEMS, tiny_trajectories

NOTHING = re.compile(r"(?<![\d.])0\.0+(?!\d)")


@pytest.mark.parametrize(
    ("mean", "interval", "text"),
    [
        (0.031, 0.0042, "0.0310 ± 0.0042"),
        (0.031, None, "0.031"),
        (0.00012, 0.00034, "0.00012 ± 0.00034"),
        (212.34, 9.87, "212.3 ± 9.9"),
        (0.0, None, "0.0"),
        (0.0, 0.02, "0.000 ± 0.020"),
    ],
)
def test_a_return_with_its_interval(mean: float, interval: float | None, text: str) -> None:
    assert with_interval(mean, interval) == text


def test_the_tables_of_a_report() -> None:
    row: dict[str, Any] = {"environment": "shop", "items": "0123", "method": "iql", "seeds": 5, "mean": 0.031}
    row |= {"interval": 0.0042, "deviation": 0.0034, "sampled": 0.029, "sampled interval": 0.005, "median": 0.0305}
    row |= {"sampled deviation": 0.004, "IQM": 0.0307, "IQM low": 0.027, "IQM high": 0.0344, "best val": 0.033}
    row |= {"last val": 0.02, "score": None, "steps": 100}
    large = row | {"method": "bc", **{name: 300 * value for name, value in row.items() if isinstance(value, float)}}
    for spread, text in (("interval", "0.0310 ± 0.0042"), ("deviation", "0.0310 ± 0.0034")):
        table = shown(pd.DataFrame([row, large]), spread)
        assert not any(NOTHING.search(cell) for cell in table.iloc[0].astype(str))
        assert table["test return"][0] == text and table["IQM"][0] == "0.0307 [0.0270, 0.0344]"
        assert table["test return"][1] == ("9.3 ± 1.3" if spread == "interval" else "9.3 ± 1.0")
        assert table["IQM"][1] == "9.2 [8.1, 10.3]"


def test_the_card() -> None:
    data = tiny_trajectories(400)
    clicks = torch.zeros_like(data.clicks)
    clicks[::40, 3, 0] = 1
    card = describe(Trajectories(data.slates, clicks), [{"name": "log"}], num_items=ITEMS, anchors=None)
    page = as_markdown(card)
    assert "mean 0.025 ± 0.015 (95 %), standard deviation 0.16." in page


def test_estimates_by_a_user_model(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"checkpoint": "best.ckpt", "step": 4, "estimate": 0.031, "interval": 0.0042, "simulated": 0.03}
    row |= {"simulated_interval": 0.001, "covered_cells": 1.0, "covered_pairs": 1.0, "covered_slates": 1.0}

    class Made:
        def result(self) -> dict[str, Any]:
            return {"dataset": "log", "checkpoints": [row | {"warning": None}], "rank_correlation": None}

    estimated._show(Made())  # type: ignore[arg-type]
    text = capsys.readouterr().err
    assert "0.0310 ± 0.0042" in text and "0.0300 ± 0.0010" in text
