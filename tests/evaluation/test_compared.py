"""Rank correlations with their interval, and the checkpoints of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from slaterl.errors import UserError
from slaterl.evaluation.compared import checkpoints_in, correlated, interval_of, tell_correlation
from slaterl.run import run_stage
from tests.helpers import compose_config


def rows(estimates: Any, simulated: Any) -> list[dict[str, Any]]:
    return [{"estimate": one, "simulated": other} for one, other in zip(estimates, simulated, strict=True)]


def test_a_rank_correlation_needs_five_distinct_policies() -> None:
    four = rows([1, 2, 3, 4, 4], [1, 3, 2, 4, 4])
    assert correlated(four) == {"rank_correlation": None}
    assert correlated(rows([1] * 6, range(6))) == {"rank_correlation": None}
    assert correlated(rows(range(6), [None] * 6)) == {"rank_correlation": None}
    found = correlated([*four, *rows([5], [6])])
    assert found["rank_correlation"] == pytest.approx(0.9)
    low, high = found["rank_correlation_interval"]
    width = 1.96 * np.sqrt((1 + 0.81 / 2) / 2)
    assert (low, high) == pytest.approx((np.tanh(np.arctanh(0.9) - width), np.tanh(np.arctanh(0.9) + width)), abs=1e-4)


@pytest.mark.parametrize("correlation", [1.0, -1.0])
def test_a_perfect_order_of_few_policies_says_little(correlation: float) -> None:
    low, high = sorted(abs(bound) for bound in interval_of(correlation, 5))
    assert high == 1 and low < 0.5
    assert min(map(abs, interval_of(correlation, 40))) > 0.95


@pytest.mark.parametrize(("truth", "count"), [(0.0, 8), (0.6, 8), (0.9, 12)])
def test_the_interval_holds_the_truth(truth: float, count: int) -> None:
    """Of policies whose estimates and returns are Gaussian, in at least 93 of 100 draws."""
    random = np.random.default_rng(0)
    # Spearman's of a Gaussian with Pearson's correlation p is 6 / pi * arcsin(p / 2)
    pearson, held = 2 * np.sin(np.pi / 6 * truth), 0
    for _ in range(1000):
        drawn = random.multivariate_normal([0, 0], [[1, pearson], [pearson, 1]], count)
        low, high = interval_of(float(stats.spearmanr(*drawn.T).statistic), count)
        held += low <= truth <= high
    assert held / 1000 > 0.93


def test_it_is_told_with_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    tell_correlation({"rank_correlation": 0.9, "rank_correlation_interval": [-0.19, 0.99]})
    tell_correlation({"rank_correlation": 0.5})  # of an older version
    tell_correlation({"rank_correlation": None})
    told = capsys.readouterr().err
    assert "0.90 (95 %: -0.19 to 0.99)" in told and "simulator: 0.50\n" in told and told.count("rank") == 2


def test_checkpoints_of_a_folder_in_the_order_of_their_steps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoints in this folder"):
        checkpoints_in(str(tmp_path), "fqe")
    for name in ("step10", "step9", "kept-step10", "best", "last"):
        (tmp_path / f"{name}.ckpt").touch()
    names = [file.stem for file in checkpoints_in(str(tmp_path), "fqe")]
    assert names == ["step9", "kept-step10", "step10", "best"]
    with pytest.raises(UserError, match="evaluation=ips needs checkpoint="):
        checkpoints_in(None, "ips")


@pytest.mark.parametrize(
    "agent", [["agent=random"], ["agent=constant_slate", "ranker=none", "agent.slate=[1,2,3]"], []]
)
@pytest.mark.parametrize("evaluation", ["ips", "fqe"])
def test_agents_that_do_not_learn_are_sent_to_the_user_model(agent: list[str], evaluation: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,turn,slate,clicks,propensity\n")
    log = ["dataset=log", f"dataset.path={tmp_path / 'log.csv'}", f"paths.root={tmp_path / 'home'}"]
    cfg = compose_config("stage=evaluate", f"evaluation={evaluation}", *agent, *log)
    with pytest.raises(
        UserError, match=f"checkpoint: evaluation={evaluation} needs .*; agents that do not learn .*user"
    ):
        run_stage(cfg)
    assert not (tmp_path / "home").exists()
