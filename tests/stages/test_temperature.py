"""stage=evaluate serves a checkpoint at another temperature of its ranker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slaterl.errors import UserError
from slaterl.report.find import find
from slaterl.report.records import name_methods
from slaterl.run import run_stage
from slaterl.runs.files import read_json
from tests.helpers import compose_config

SIZES = """scale=smoke device=cpu threads=1 env.num_items=60 env.num_topics=5 env.slate_size=4 env.episode_length=7
test_users=6 max_steps=40 logged_data.trajectories=30"""
SMALL = SIZES.split()
TOP_K = ["ranker=top_k", "item_embeddings=ideal"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deterministic agent without a temperature, and one without a ranker."""
    home = tmp_path_factory.mktemp("served") / "home"
    for agent in (["agent=sac", *TOP_K, "ranker.temperature=0.1"], ["agent=best_constant_slate"]):
        run_stage(compose_config(*SMALL, *agent, f"paths.root={home}"))
    return home


def checkpoint_of(home: Path, agent: str) -> Path:
    (file,) = home.glob(f"online/*/{agent}-*/best.ckpt")
    return file


def served(home: Path, monkeypatch: pytest.MonkeyPatch, *given: str, agent: str = "sac") -> dict[str, Any]:
    """Evaluate with settings that count as given on the command line."""
    monkeypatch.setattr("slaterl.stages.evaluate.given_keys", lambda: {entry.split("=")[0] for entry in given})
    before = set(home.glob("evaluate/*/*"))
    file = checkpoint_of(home, agent)
    run_stage(compose_config("stage=evaluate", "device=cpu", f"checkpoint={file}", *given, f"paths.root={home}"))
    (folder,) = set(home.glob("evaluate/*/*")) - before
    return {"folder": folder, **read_json(folder / "result.json")}


def test_temperature_changes_draws_and_the_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = served(home, monkeypatch)
    warm = served(home, monkeypatch, "ranker.temperature=1000")
    cold = served(home, monkeypatch, "ranker.temperature=0")
    assert own["test_return"] == warm["test_return"] == cold["test_return"]
    assert len({one["test_return_sampled"] for one in (own, warm, cold)}) == 3
    assert "temperature" not in own and (warm["temperature"], cold["temperature"]) == (1000, 0)
    assert "-temperature1000-" in warm["folder"].name and "-temperature0-" in cold["folder"].name
    methods = [method for method in name_methods(find(None, home)) if "checkpoint" in method]
    assert len(set(methods)) == 3 and any("temperature=1000" in method for method in methods)


@pytest.mark.parametrize("key", ["ranker", "ranker.unique", "agent.gamma", "params"])
def test_other_parts_stay_the_checkpoints(home: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("slaterl.stages.evaluate.given_keys", lambda: {key, "ranker.temperature"})
    cfg = compose_config("stage=evaluate", f"checkpoint={checkpoint_of(home, 'sac')}", f"paths.root={home}")
    with pytest.raises(UserError, match=rf"{key.split('.')[0]}: checkpoint=.* has its own"):
        run_stage(cfg)


def test_agent_without_a_ranker_has_no_temperature(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"ranker.temperature: agent=best_constant_slate of .* no ranker that draws"):
        served(home, monkeypatch, "ranker.temperature=1", agent="best_constant_slate")


def test_estimates_refuse_what_they_would_not_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slaterl.stages.evaluate.given_keys", lambda: {"ranker.temperature"})
    file = checkpoint_of(home, "sac")
    cfg = compose_config("stage=evaluate", "evaluation=fqe", f"checkpoint={file}", f"paths.root={home}")
    with pytest.raises(UserError, match=r"ranker: checkpoint=.* has its own"):
        run_stage(cfg)
