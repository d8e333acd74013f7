"""Checkpoints whose classes have changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from slaterl.agents.loading import load_policy
from slaterl.config.build import AGENT_NODES, build_agent, build_env, plain
from slaterl.errors import UserError
from slaterl.run import run_stage
from slaterl.training import checkpoints
from tests.helpers import compose_config

SETTINGS = ["scale=smoke", "device=cpu", "agent=td3", "ranker=top_k", "item_embeddings=ideal", "env.num_items=60"]


@pytest.fixture
def state() -> dict[str, Any]:
    """State of an untrained agent's checkpoint."""
    cfg = compose_config(*SETTINGS)
    env = build_env(cfg.env, torch.device("cpu"))
    nodes = {name: plain(cfg[name]) for name in AGENT_NODES}
    learner = build_agent(nodes, env, seed=0).learner_state()
    config = {**nodes, "env": plain(cfg.env), "catalogue": env.item_embeddings}
    return {"kind": "agent", "learner": learner, "config": config}


def refused(state: dict[str, Any], file: Path, why: str) -> None:
    checkpoints.save(file, state)
    with pytest.raises(UserError, match=f"{re.escape(str(file))}: .*{why}"):
        load_policy(file)


def test_as_it_was_written(state: dict[str, Any], tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "some.ckpt", state)
    assert load_policy(tmp_path / "some.ckpt").step == 0


def test_class_that_is_gone(state: dict[str, Any], tmp_path: Path) -> None:
    state["config"]["agent"]["_target_"] = "of_a_colleague.DDPG"
    refused(state, tmp_path / "some.ckpt", "cannot be built here .*of_a_colleague")


def test_constructor_that_changed(state: dict[str, Any], tmp_path: Path) -> None:
    state["config"]["agent"]["sharpness"] = 1
    refused(state, tmp_path / "some.ckpt", "cannot be built here .*sharpness")


def test_networks_that_changed(state: dict[str, Any], tmp_path: Path) -> None:
    del state["learner"]["module"]["actor.0.bias"]
    refused(state, tmp_path / "some.ckpt", r"written by another version of TD3 .*actor\.0\.bias")


def test_going_on_with_networks_that_changed(tmp_path: Path) -> None:
    cfg = compose_config(*SETTINGS, "threads=1", "env.episode_length=5", f"paths.root={tmp_path}")
    run_stage(cfg)
    (last,) = tmp_path.glob("online/*/*/last.ckpt")
    last.with_name("result.json").unlink()
    state = checkpoints.load(last, "agent")
    del state["learner"]["module"]["actor.0.bias"]
    checkpoints.save(last, state)
    with pytest.raises(
        UserError, match=rf"{re.escape(str(last))}: written by another version of TD3 .*remove its folder"
    ):
        run_stage(cfg)
