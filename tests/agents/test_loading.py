"""Checkpoints whose classes have changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from slaterl.agents.loading import LoadedPolicy, check_items, item_numbers, load_policy, renumbered
from slaterl.config.build import AGENT_NODES, build_agent, build_env, plain
from slaterl.data.trajectories import Trajectories
from slaterl.data.vocabulary import Vocabulary
from slaterl.envs.log import LoggedEnv
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


def loaded_from(ids: list[Any], slate_size: int = 2) -> LoadedPolicy:
    env = log_env("old", ids, slate_size)
    return LoadedPolicy(policy=None, env=env, config={"item_ids": ids}, step=0)  # type: ignore[arg-type]


def log_env(name: str, ids: list[Any], slate_size: int = 2) -> LoggedEnv:
    items = Vocabulary(ids, [1] * len(ids), [0] * len(ids)).fingerprint
    return LoggedEnv(name=name, num_items=len(ids), slate_size=slate_size, episode_length=3, items=items)


def test_items_of_a_log_are_found_by_their_ids() -> None:
    loaded, ids = loaded_from(["a", "b", "c", "d"]), ["b", "d"]
    numbers = item_numbers(loaded, log_env("new", ids), "x.ckpt", ids)
    assert numbers is not None and numbers.tolist() == [1, 3]
    slates = torch.tensor([[[0, 1], [1, 0], [1, 1]]], dtype=torch.uint8)
    data = Trajectories(slates, torch.zeros_like(slates), lengths=torch.tensor([2]))
    read = renumbered(data, numbers, 4)
    assert read.slates.tolist() == [[[0, 1], [3, 1], [3, 3]]] and read.lengths is data.lengths
    assert item_numbers(loaded, log_env("same", ["a", "b", "c", "d"]), "x", ["a", "b", "c", "d"]) is None
    assert renumbered(data, None, 4) is data
    as_text = [str(i) for i in sorted(range(12), key=str)]
    numbers = item_numbers(loaded_from(list(range(12))), log_env("new", as_text), "x.ckpt", as_text)
    assert numbers is not None and numbers.tolist() == [int(one) for one in as_text]


def test_items_that_do_not_fit_are_refused_by_name() -> None:
    loaded = loaded_from(["a", "b", "c"])
    cases: list[tuple[Any, list[Any], str]] = [
        (item_numbers, ["a", "x", "y"], "learned from a log without the item x (2 of the 3 items of new are unknown"),
        (check_items, ["a", "c"], "shows the item b, which new does not have (1 of 3 items)"),
    ]
    for check, ids, said in cases:
        with pytest.raises(UserError) as error:
            check(loaded, log_env("new", ids), "x.ckpt", ids)
        assert str(error.value).startswith(f"x.ckpt: {said}")
    numbers, text = list(range(12)), sorted(map(str, range(12)))
    with pytest.raises(UserError, match=r"has the items of new in another order"):
        check_items(loaded_from(numbers), log_env("new", text), "x.ckpt", text)
    del loaded.config["item_ids"]  # an older checkpoint
    with pytest.raises(UserError, match=r"learned on the item embeddings .* of old \(3 items\), but env=new has"):
        item_numbers(loaded, log_env("new", ["a", "b"]), "x.ckpt", ["a", "b"])
    with pytest.raises(UserError, match=r"env.slate_size is 2 there, but 1 here"):
        check_items(loaded, log_env("new", ["a", "b", "c"], 1), "x.ckpt", ["a", "b", "c"])
