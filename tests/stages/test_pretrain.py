"""stage=pretrain that stops early: what it leaves, and how it resumes after kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from slaterl.run import run_stage
from slaterl.runs.files import read_json
from slaterl.runs.products import product_of
from slaterl.training import metrics
from tests.helpers import compose_config

KILLER = Path(__file__).parents[1] / "killer.py"
# five updates an epoch; from a loss of about 7, none lowers it by 1
PRETRAIN = ["stage=pretrain", "scale=smoke", "device=cpu", "threads=1", "pretrain.epochs=6"]
IMPATIENT = ["pretrain.patience=2", "pretrain.min_delta=1"]


def pretrained(home: Path, *more: str) -> Path:
    cfg = compose_config(*PRETRAIN, f"paths.root={home}", *more)
    run_stage(cfg)
    return product_of(cfg, "pretrain").run.path


def told(folder: Path) -> dict[str, Any]:
    """The result and the rows of metrics.csv without times."""
    rows = [
        {key: value for key, value in row.items() if not key.startswith(("time/", "speed/"))}
        for row in metrics.read(folder / "metrics.csv")
    ]
    return {**read_json(folder / "result.json"), "seconds": None, "rows": rows}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("stopped"), *IMPATIENT)


def test_what_a_run_that_stopped_early_leaves(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = told(stopped)
    assert (result["epochs"], result["steps"], result["slates"], result["stopped_early"]) == (3, 15, 3240, True)
    assert result["rows"][-1]["step"] == "15"
    assert {"curves.png", "last.ckpt", "best.ckpt"} <= {file.name for file in stopped.iterdir()}
    ranker, best = (torch.load(stopped / name, weights_only=True) for name in ("ranker.ckpt", "best.ckpt"))
    assert best["learner"]["step"] == result["best_step"]
    weights = {name.removeprefix("gems."): value for name, value in best["learner"]["module"].items()}
    learned = ranker["module"].keys() - {"center", "half_width"}  # the box comes after the training
    assert all(torch.equal(ranker["module"][name], weights[name]) for name in learned)

    before = (stopped / "ranker.ckpt").stat().st_mtime_ns
    assert pretrained(stopped.parents[2], *IMPATIENT) == stopped
    assert (stopped / "ranker.ckpt").stat().st_mtime_ns == before
    assert "already finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("point", "count"),
    [
        ("update:12", 1),
        ("replace:12", 1),  # after best.ckpt of the last epoch, before its last.ckpt
        ("replace:15", 2),  # before result.json: no epoch may follow
    ],
)
def test_kill_9_between_bad_epochs(point: str, count: int, stopped: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = [*PRETRAIN, *IMPATIENT, f"paths.root={home}"]
    environment = {**os.environ, "PYTHONPATH": str(KILLER.parents[1])}
    run = [sys.executable, str(KILLER), point, *command]
    assert subprocess.run(run, env=environment, capture_output=True, cwd=tmp_path).returncode == -signal.SIGKILL
    saved = torch.load(next(home.glob("pretrain/*/*/last.ckpt")), weights_only=True)
    assert saved["stale"] == count, "it was killed elsewhere"
    resumed = pretrained(home, *IMPATIENT)
    assert told(resumed) == told(stopped)
    one, other = (torch.load(folder / "ranker.ckpt", weights_only=True)["module"] for folder in (resumed, stopped))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_does_not_stop_while_the_loss_falls(tmp_path: Path) -> None:
    result = told(pretrained(tmp_path, "pretrain.patience=1"))
    losses = [float(row["val/loss/total"]) for row in result["rows"] if row["val/loss/total"]]
    assert losses == sorted(losses, reverse=True) and len(losses) == 6
    assert (result["epochs"], result["steps"], result["stopped_early"]) == (6, 30, False)


def test_both_settings_are_part_of_the_name_with_patience_alone(tmp_path: Path) -> None:
    def name(*more: str) -> str:
        return product_of(compose_config(*PRETRAIN, *more), "pretrain").run.path.name

    settings: list[list[str]] = [[], ["pretrain.patience=2"], ["pretrain.patience=3"], IMPATIENT]
    assert len({name(*its) for its in settings}) == len(settings)
    assert name() == name("pretrain.patience=null", "pretrain.min_delta=0")
    assert name("pretrain.patience=2") == name("pretrain.patience=2", "pretrain.min_delta=0")


@pytest.mark.parametrize("patience", [5, 6, 100])
def test_a_patience_that_cannot_end_before_the_epochs_is_none(patience: int, tmp_path: Path) -> None:
    """The first validation is always better than none, so 5 of 6 can be without a better loss."""
    cfg = [compose_config(*PRETRAIN, *more) for more in ((), (f"pretrain.patience={patience}", "pretrain.min_delta=9"))]
    plain, patient = (product_of(one, "pretrain").run for one in cfg)
    assert plain.path.name == patient.path.name
    most = pretrained(tmp_path, "pretrain.patience=4", "pretrain.min_delta=99")
    assert told(most)["stopped_early"], "one less can end before"
