"""Acting with and without exploration: both returns of validations and tests, and the one that chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slaterl.agents.heuristics import ConstantSlate
from slaterl.agents.loading import load_policy
from slaterl.data import trajectories
from slaterl.errors import UserError
from slaterl.evaluation.evaluate import evaluate
from slaterl.run import run_stage
from slaterl.runs.files import fingerprint_of, read_json
from slaterl.runs.products import product_of
from slaterl.runs.run import Run
from slaterl.training import checkpoints, metrics
from tests.helpers import compose_config

SIZES = """scale=smoke device=cpu threads=1 env.num_items=60 env.num_topics=5 env.slate_size=4 env.episode_length=7
max_steps=30 random_steps=10 num_envs=5 batch_size=3 capacity=20 val_every_n_steps=5 val_users=6 test_users=6
save_every_n_steps=15 logged_data.trajectories=30 collect.trajectories=20 offline.max_steps=6 offline.batch_size=4
offline.val_every_n_steps=2 offline.val_users=6 offline.test_users=6 offline.save_every_n_steps=3"""
WAYS = ("deterministic", "sampled")
SAMPLED = ("return_sampled", "interval_sampled")


def make(home: Path, *overrides: str) -> Path:
    """Run a stage and return its folder."""
    cfg = compose_config(*SIZES.split(), f"paths.root={home}", *overrides)
    run_stage(cfg)
    return product_of(cfg, cfg.stage.name).run.path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def sac(home: Path) -> Path:
    return make(home)


def columns(folder: Path, *left_out: str) -> list[dict[str, str]]:
    """The rows of metrics.csv but for times and some columns."""
    unread = (*left_out, "time/seconds", "speed/steps_per_s", "speed/turns_per_s")
    return [
        {key: value for key, value in row.items() if key not in unread} for row in metrics.read(folder / "metrics.csv")
    ]


def states(folder: Path) -> list[Any]:
    state = checkpoints.load(folder / "last.ckpt", "agent")
    return [state["learner"], state["data"]]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_both_returns_are_reported(sac: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = read_json(sac / "result.json")
    steps, sampled = metrics.curve(sac / "metrics.csv", "val/return_sampled")
    plain = metrics.curve(sac / "metrics.csv", "val/return")[1]
    assert len(sampled) == len(plain) == 4 and sampled != plain
    best = steps.index(result["best_step"])
    assert result["val_return"] == pytest.approx(plain[best], rel=1e-5) and plain[best] == max(plain)
    assert result["val_return_sampled"] == pytest.approx(sampled[best], rel=1e-5)
    assert result["test_return_sampled"] != result["test_return"] and result["test_interval_sampled"] > 0
    capsys.readouterr()
    again = read_json(make(home, "stage=evaluate", f"checkpoint={sac / 'best.ckpt'}") / "result.json")
    assert all(again[f"test_{name}"] == result[f"test_{name}"] for name in ("return", *SAMPLED))
    table = capsys.readouterr().err
    assert "sampled" in table and f"{result['test_return_sampled']:.1f} ±" in table


def test_sampling_in_validations_leaves_training_as_it_is(sac: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("slaterl.evaluation.evaluate.explores", lambda policy: False)
    monkeypatch.setattr("slaterl.stages.agent.explores", lambda policy: False)
    without = make(tmp_path)
    assert without.name == sac.name
    both = [f"val/{name}" for name in SAMPLED]
    assert columns(without) == columns(sac, *both) and columns(without) != columns(sac)
    assert equal(states(without), states(sac))
    entries = read_json(without / "result.json").keys()
    assert read_json(sac / "result.json").keys() - entries == {"val_return_sampled", *(f"test_{n}" for n in SAMPLED)}


@pytest.mark.parametrize("agent", ["td3_bc", "bc", "iql", "decision_transformer"])
def test_agents_that_do_not_explore_have_one_return(home: Path, agent: str) -> None:
    folder = make(home, "stage=offline", "dataset=random", f"agent={agent}")
    explores = agent == "iql"
    assert ("test_return_sampled" in read_json(folder / "result.json")) == explores
    assert ("val/return_sampled" in metrics.read(folder / "metrics.csv")[0]) == explores
    # each algorithm of a table is validated equally often
    assert metrics.curve(folder / "metrics.csv", "val/return")[0] == [2, 4, 6]


def test_a_temperature_gives_such_an_agent_a_sampled_return(home: Path) -> None:
    folder = make(home, "stage=offline", "dataset=random", "agent=td3_bc", "ranker.temperature=3")
    plain = make(home, "stage=offline", "dataset=random", "agent=td3_bc")
    warm, cold = (read_json(path / "result.json") for path in (folder, plain))
    assert folder != plain and warm["ranker_run"] == cold["ranker_run"]
    assert warm["test_return"] == cold["test_return"], "learning and acting without exploration stay as they are"
    assert warm["test_return_sampled"] != warm["test_return"]


def test_the_return_that_chooses(sac: Path, home: Path) -> None:
    folder = make(home, "validation.by=sampled")
    assert folder.name != sac.name and columns(folder) == columns(sac)
    result = read_json(folder / "result.json")
    steps, sampled = metrics.curve(folder / "metrics.csv", "val/return_sampled")
    assert result["best_step"] == steps[sampled.index(max(sampled))] != read_json(sac / "result.json")["best_step"]
    assert result["val_return_sampled"] == pytest.approx(max(sampled), rel=1e-5)
    assert result["val_return"] < read_json(sac / "result.json")["val_return"]
    state = checkpoints.load(folder / "best.ckpt", "agent")
    assert state["learner"]["step"] == result["best_step"]


def test_learners_that_validate_in_another_way_share_their_dataset() -> None:
    offline = ["stage=offline", "dataset=medium", "agent=iql"]
    one, other = (product_of(compose_config(*offline, f"validation.by={by}"), "offline") for by in WAYS)
    assert one.run.digest != other.run.digest
    assert one.inputs["dataset"].run.digest == other.inputs["dataset"].run.digest
    with pytest.raises(UserError, match=r"validation\.by=sampled: offline\.validation=fqe"):
        run_stage(compose_config(*offline, "validation.by=sampled", "offline.validation=fqe"))


def test_medium_is_a_kept_checkpoint(sac: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = sorted(file.name for file in sac.glob("kept-step*.ckpt"))
    assert kept == [f"kept-step{step}.ckpt" for step in (15, 20, 25, 30)]
    assert checkpoints.load(sac / kept[0], "agent")["learner"].keys() == {"module", "step"}
    chosen = make(home, "stage=collect", "dataset=medium", "dataset.run.medium_step=25")
    content = read_json(chosen / "card.json")["behaviours"][0]["checkpoint"]
    assert content == fingerprint_of(sac / "kept-step25.ckpt")

    asked: list[bool] = []

    def medium(run: Run, *, sampled: bool) -> Path:
        asked.append(sampled)
        return run.path / "kept-step20.ckpt"

    monkeypatch.setattr("slaterl.stages.collect.medium_checkpoint", medium)
    by_return = make(home, "stage=collect", "dataset=medium", "dataset.run.medium_step=null")
    assert by_return != chosen and asked == [True]
    content = read_json(by_return / "card.json")["behaviours"][0]["checkpoint"]
    assert content == fingerprint_of(sac / "kept-step20.ckpt")


def test_constant_slate_of_a_dataset_is_tested_on_its_environment(sac: Path, home: Path) -> None:
    """Its slots hold the items that the behaviours, not the environment's first slate, showed most often."""
    folder = make(home, "stage=collect", "dataset=expert")
    slates = trajectories.load(folder / trajectories.FILE)[0].slates[:, 1:].flatten(0, 1).numpy()
    slate = [int(np.bincount(column).argmax()) for column in slates.T]
    env = load_policy(sac / "best.ckpt").env
    policy = ConstantSlate(slate=slate, num_items=env.num_items, slate_size=env.slate_size)
    expected = evaluate(policy, env, 500, 58407201, "test").mean_return
    assert read_json(folder / "result.json")["most_frequent_slate_return"] == pytest.approx(expected)
    assert read_json(folder / "card.json")["anchors"]["most_frequent_slate"]["return"] == pytest.approx(expected)
    assert "each slot's most frequent item | " in (folder / "card.md").read_text().replace("  ", "")
