"""stage=user_model: what it leaves, and how it resumes after kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from slaterl.config.check import check_config
from slaterl.errors import UserError
from slaterl.run import run_stage
from slaterl.runs.files import read_json
from slaterl.runs.products import product_of
from slaterl.training import metrics
from slaterl.user_models.page import verdict
from slaterl.user_models.saved import FILE, load_user_model
from tests.helpers import compose_config

KILLER = Path(__file__).parents[1] / "killer.py"
LEARN = ["stage=user_model", "dataset=random", "scale=smoke", "device=cpu", "threads=1"]
LEARN += ["user_training.val_every_n_steps=2", "user_training.lr=0.03", "user_training.patience=1"]  # one stops early


def learned(home: Path, *more: str) -> Path:
    cfg = compose_config(*LEARN, f"paths.root={home}", *more)
    run_stage(cfg)
    return product_of(cfg, "user_model").run.path


def told(folder: Path) -> dict[str, Any]:
    """The result and the rows of metrics.csv without times."""
    rows = [
        {key: value for key, value in row.items() if not key.startswith(("time/", "speed/"))}
        for row in metrics.read(folder / "metrics.csv")
    ]
    return {**read_json(folder / "result.json"), "seconds": None, "rows": rows}


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict):
        return [tensor for _, part in sorted(value.items()) for tensor in tensors(part)]
    if isinstance(value, list):
        return [tensor for part in value for tensor in tensors(part)]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("finished"))


def test_what_it_leaves(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {file.name for file in finished.iterdir()}
    assert {"result.json", FILE, "user_model.md", "user_model.png", "curves.png", "metrics.csv"} <= files
    result = told(finished)
    assert (result["sessions"], result["test_sessions"], result["test_turns"]) == (32, 4, 80)
    assert {row["val/learning"] for row in result["rows"]} > {"1"}, "no member stopped before the other"
    page = (finished / "user_model.md").read_text(encoding="utf-8")
    assert page.splitlines()[2] == verdict(result)
    model = load_user_model(finished / FILE, torch.device("cpu"))
    assert len(model.members) == 2 and not any(p.requires_grad for member in model.members for p in member.parameters())
    best = torch.load(finished / "best.ckpt", weights_only=True)["learner"]["module"]
    for number, member in enumerate(model.members):
        for name, value in member.state_dict().items():
            assert torch.equal(value, best[f"best.{number}.{name}"])
    assert model.first_slates.shape == (40, 10)
    assert learned(finished.parents[2]) == finished
    assert "already finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    "point",
    [
        "update:5",  # one member has stopped
        "replace:13",  # after best.ckpt, before its last.ckpt
        "replace:19",  # before result.json
    ],
)
def test_kill_9(point: str, finished: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {**os.environ, "PYTHONPATH": str(KILLER.parents[1])}
    run = [sys.executable, str(KILLER), point, *LEARN, f"paths.root={home}"]
    assert subprocess.run(run, env=environment, capture_output=True, cwd=tmp_path).returncode == -signal.SIGKILL
    (folder,) = home.glob("user_model/*/*")
    assert (folder / "last.ckpt").is_file() and not (folder / "result.json").is_file(), "it was killed elsewhere"
    resumed = learned(home)
    assert told(resumed) == told(finished)
    states = [torch.load(path / FILE, weights_only=True) for path in (resumed, finished)]
    for one, other in zip(*map(tensors, states), strict=True):
        assert torch.equal(one, other)


def test_offline_agents_are_chosen_and_tested_by_it(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one without latent actions, which fitted Q evaluation cannot value; then stage=evaluate on its folder."""
    here = [*LEARN[1:], f"paths.root={finished.parents[2]}"]
    train = [*here, "stage=offline", "agent=slate_bc", "ranker=none", "offline.validation=user_model"]
    cfg = compose_config(*train)
    run_stage(cfg)
    run = product_of(cfg, "offline").run
    result = told(run.path)
    assert result["test_users"] is None and len(result["test_members"]) == 2
    assert result["test_return"] == pytest.approx(sum(result["test_members"]) / 2)
    assert "by the user model" in capsys.readouterr().err
    validated = [row for row in result["rows"] if row["val/return"]]
    assert len(validated) == 3 and float(validated[0]["val/interval"]) > 0
    name = product_of(compose_config(*train, "user_training.seed=1"), "offline").run.path.name
    assert name != run.path.name, "another user model chooses other checkpoints"

    judge = compose_config(*here, "stage=evaluate", "evaluation=user_model", f"checkpoint={run.path}")
    run_stage(judge)
    rows = product_of(judge, "evaluate").run.result()["checkpoints"]
    assert [row["checkpoint"] for row in rows] == ["step6.ckpt", "step12.ckpt", "best.ckpt"]
    assert rows[-1]["estimate"] == result["test_return"], "the same users"
    assert all(row["simulated"] is not None and row["warning"] for row in rows)


def test_heuristics_are_estimated(finished: Path) -> None:
    here = [*LEARN[1:], f"paths.root={finished.parents[2]}", "stage=evaluate", "evaluation=user_model", "ranker=none"]
    cfg = compose_config(*here, "agent=random")
    run_stage(cfg)
    (row,) = product_of(cfg, "evaluate").run.result()["checkpoints"]
    assert row["agent"] == "random" and row["estimate"] > 0 and 0 <= row["covered_pairs"] <= row["covered_cells"] <= 1
    with pytest.raises(UserError, match="agent=sac learns, so evaluating it needs checkpoint=<path>"):
        product_of(compose_config(*here[:-1], "agent=sac"), "evaluate")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["user_training.members=1"], "user_training.members=1: expected a whole number of at least 2"),
        (["user_training.holdout=1"], "user_training.holdout=1: expected a number between 0 and 1"),
        (["user_model.hidden_dim=0"], "user_model.hidden_dim=0: expected a whole number of at least 1"),
    ],
)
def test_bad_settings(changes: list[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        check_config(compose_config(*LEARN, *changes), given=["dataset"])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("gain", "interval", "beginning"),
    [
        (0.02, 0.01, "The user model beats all three baselines"),
        (0.02, 0.03, "**The user model does not beat the baselines, so"),
        (-0.02, 0.01, "**The user model does not beat the baselines, so"),
        (0.02, None, "**One test session cannot tell"),
    ],
)
def test_the_first_line_says_whether_it_is_any_good(gain: float, interval: float | None, beginning: str) -> None:
    result = {
        "best_baseline": "rank",
        "baselines": {"rank": {"log_loss": 0.3}},
        "quality": {"log_loss": 0.3 - gain},
        "advantage": {"mean": gain, "interval": interval},
    }
    line = verdict(result)
    assert (
        line.startswith(beginning) and f"log-loss {0.3 - gain:.5f}, and 0.30000 by the click rate of the rank" in line
    )
