"""stage=evaluate of what does not learn but acts through a ranker: one constant slate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from slaterl.agents.loading import load_policy, policy_of
from slaterl.config.build import build_env, plain
from slaterl.errors import UserError
from slaterl.report.find import find
from slaterl.report.records import name_methods
from slaterl.run import run_stage
from slaterl.runs.files import read_json
from slaterl.stages.elsewhere import env_node
from slaterl.training import checkpoints
from tests.helpers import compose_config

SIZES = """scale=smoke device=cpu threads=1 env.num_items=60 env.num_topics=5 env.slate_size=4 env.episode_length=7
test_users=6 logged_data.trajectories=30 stage=evaluate agent=constant_slate"""
SMALL = SIZES.split()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slate of two rankers, of one of them without repeats too, and one that is given."""
    home = tmp_path_factory.mktemp("constant") / "home"
    for more in ([], ["ranker.unique=true"], ["params=params1", "seed=1"], ["agent.slate=[1,2,3,4]"]):
        run_stage(compose_config(*SMALL, *more, f"paths.root={home}"))
    return home


def results(home: Path) -> list[dict[str, Any]]:
    return [read_json(file) for file in home.glob("evaluate/*/constant_slate-*/result.json")]


def test_another_ranking_is_another_run(home: Path) -> None:
    """ranker.unique, too, decides what the slate is."""
    assert len(results(home)) == 4


def test_result_names_the_ranker_that_made_the_slate(home: Path) -> None:
    made = [result for result in results(home) if "ranker_run" in result]
    assert sorted(result["ranker"] for result in made) == ["gems_KL0.5_click0.2", *["gems_KL1.0_click0.5"] * 2]
    assert all(result["test_distinct_items"] <= 4 for result in made)


def test_slates_of_different_rankers_are_no_seeds_of_one_method(home: Path) -> None:
    names = name_methods(find(None, home))
    assert len(set(names)) == 4
    assert sum(name.startswith("constant_slate + gems_KL1.0_click0.5") for name in names) == 2


def test_part_of_a_checkpoints_click_model() -> None:
    """The rest of it stays the checkpoint's, not that of the environment which the command would compose."""
    own = plain(compose_config("env=diffuse_mix").env)
    node = env_node(compose_config("click_model.decay=0.5"), own, {"click_model.decay"})
    assert node["click_model"] == {**own["click_model"], "decay": 0.5}
    node = env_node(compose_config("click_model=tdPBM", "click_model.decay=0.5"), own, {"click_model"})
    assert (node["click_model"]["decay"], node["click_model"]["bottom_weight"]) == (0.5, 0)


def test_agent_that_knows_the_simulator_knows_the_one_it_acts_in(tmp_path: Path) -> None:
    sizes = [entry for entry in SMALL if not entry.startswith(("stage", "agent"))]
    cfg = compose_config(*sizes, "agent=slateq", "ranker=none", f"paths.root={tmp_path}")
    run_stage(cfg)
    (file,) = tmp_path.glob("online/*/*/best.ckpt")
    changed = build_env({**plain(cfg.env), "diversity_penalty": 3.0}, torch.device("cpu"))
    state = checkpoints.load(file, "agent")
    assert policy_of(state, file, env=changed).policy.agent.env is changed  # type: ignore[attr-defined]
    assert load_policy(file).policy.agent.env.diversity_penalty == 1  # type: ignore[attr-defined]


def test_agent_acts_elsewhere_as_it_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compares items by what it knew of them, whatever they are like where it is taken (force=true)."""
    home = f"paths.root={tmp_path}"
    sizes = [entry for entry in SMALL if not entry.startswith(("stage", "agent"))]
    run_stage(compose_config(*sizes, "agent=sac", "ranker=top_k", "item_embeddings=ideal", home))
    (file,) = tmp_path.glob("online/*/*/best.ckpt")
    monkeypatch.setattr("slaterl.stages.evaluate.given_keys", lambda: {"env.num_topics", "env.topic_size"})
    elsewhere = ["env.num_items=60", "env.num_topics=4", "env.topic_size=3", "env.slate_size=4", "env.episode_length=7"]
    run_stage(compose_config("stage=evaluate", f"checkpoint={file}", "force=true", "device=cpu", *elsewhere, home))
    (result,) = (read_json(path) for path in tmp_path.glob("evaluate/*/*/result.json"))
    assert 0 <= result["test_return"] <= 28


@pytest.mark.parametrize("key", ["env.no_such_setting", "env.no_such_part.seed", "env.item_embeddings.no_such_setting"])
def test_setting_that_the_checkpoints_environment_does_not_have(key: str) -> None:
    own = plain(compose_config("env=diffuse_mix").env)
    with pytest.raises(UserError, match=rf"{key}: env=diffuse_mix of checkpoint=.* has no such setting"):
        env_node(compose_config("stage=evaluate", "checkpoint=x"), own, {key})
