"""Users who leave before the horizon: rollouts record their lengths, and every online agent learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.data import trajectories
from slaterl.data.trajectories import Trajectories
from slaterl.envs.gymnasium import SlateEnv, SlateVectorEnv
from slaterl.errors import UserError
from slaterl.evaluation.evaluate import evaluate
from slaterl.rollout import collect, rollout
from slaterl.run import run_stage
from slaterl.runs.files import read_json
from slaterl.seeds import stream
from tests.envs.leaving import Leaving
from tests.helpers import compose_config
from tests.meta import META, OnMeta, Stream, to_meta

YAML = """_target_: tests.envs.leaving.Leaving
name: leaving
num_items: 30
slate_size: 3
episode_length: 8
period: 4
"""
SIZES = [
    "env=leaving",
    "scale=smoke",
    "device=cpu",
    "threads=1",
    "logged_data.epsilon=1",
    "logged_data.trajectories=40",
]


def leaving() -> Leaving:
    return Leaving(name="leaving", num_items=30, slate_size=3, episode_length=8, period=4)


def random() -> EpsilonOracle:
    return EpsilonOracle(epsilon=1.0, num_items=30, slate_size=3, generator=stream(0, "slates"))


def served(users: int = 200) -> Trajectories:
    return rollout(random(), leaving(), users, generator=stream(0, "users"), deterministic=True)


def test_a_rollout_ends_where_the_user_leaves() -> None:
    data = served()
    assert data.lengths is not None and data.truncated is None
    assert data.lengths.min() >= 1 and data.lengths.max() == 8 and len(data.lengths.unique()) > 4
    patience = torch.randint(1, 5, (200,), generator=stream(0, "users"))
    for user in range(200):
        without, turn = 0, 0
        while turn < 8 and without < patience[user]:
            turn += 1
            without += not data.clicks[user, turn].any()
        assert data.lengths[user] == turn
    padding = ~data.mask
    assert not data.slates[:, 1:][padding].any() and not data.clicks[:, 1:][padding].any()
    assert data.slates[:, 1:][data.mask].any(1).all()


def test_collect_keeps_lengths() -> None:
    data = collect(random(), leaving(), 50, generator=stream(0, "users"), deterministic=True, num_envs=20)
    assert data.lengths.shape == (50,) and len(data.lengths.unique()) > 3


def test_evaluation_counts_turns_that_were_served() -> None:
    policy = random()
    found = evaluate(policy, leaving(), 300, 0, "test")
    data = rollout(random(), leaving(), 300, generator=stream(0, "test users"), deterministic=True)
    assert found.mean_return == pytest.approx(data.clicks[:, 1:].sum().item() / 300)
    assert found.clicks_per_turn == pytest.approx(data.clicks[:, 1:].sum().item() / data.lengths.sum().item())


def test_no_turn_waits_for_who_left() -> None:
    env, policy = to_meta(leaving()), to_meta(random())
    with OnMeta():
        data = rollout(policy, env, 6, generator=Stream(), deterministic=True)
    assert data.lengths.device == META


def test_the_class_says_whether_users_leave() -> None:
    env = leaving()
    env.ends_early = False
    with pytest.raises(UserError, match=r"env=leaving: ends_early=False, so the third value of step"):
        rollout(random(), env, 4, generator=stream(0, "users"), deterministic=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "env").mkdir()
    (folder / "env" / "leaving.yaml").write_text(YAML)
    return folder


def run(folder: Path, home: Path, *overrides: str) -> Any:
    return run_stage(compose_config(f"hydra.searchpath=[file://{folder}]", *SIZES, f"paths.root={home}", *overrides))


@pytest.mark.parametrize(
    ("agent", "more"),
    [
        ("sac", "ranker=k_head_argmax item_embeddings=scratch"),
        ("td3", "ranker=k_head_argmax item_embeddings=scratch"),
        ("reinforce", "ranker=k_head_argmax item_embeddings=scratch"),
        ("reinforce_slate", ""),
        ("dqn", ""),
        ("wolpertinger", "item_embeddings=scratch"),
    ],
)
def test_online_agents_learn(folder: Path, tmp_path: Path, agent: str, more: str) -> None:
    run(folder, tmp_path, f"agent={agent}", *more.split())
    (file,) = tmp_path.glob("online/leaving/*/result.json")
    found = read_json(file)
    assert found["trajectories"] <= found["turns"] < 8 * found["trajectories"]


def test_datasets_and_offline_agents(folder: Path, tmp_path: Path) -> None:
    """GeMS is pretrained on sessions of different lengths, and so is a dataset collected and learned."""
    run(folder, tmp_path, "stage=offline", "agent=iql", "dataset=random", "offline.validation=fqe")
    (file,) = tmp_path.glob("collect/leaving/*/trajectories.safetensors")
    data, _ = trajectories.load(file)
    about = read_json(file.parent / "result.json")
    assert about["turns"] == data.turns == data.lengths.sum() < 15 * len(data)
    page = (file.parent / "card.md").read_text()
    assert "trajectories of 1 to " in page and "## Turns of a session" in page


def test_gymnasium_serves_one_user_to_the_end(folder: Path) -> None:
    given = dict(env="leaving", overrides=[f"hydra.searchpath=[file://{folder}]"])
    env, turns = SlateEnv(**given), set()
    for seed in range(20):
        env.reset(seed=seed)
        ended, turn = False, 0
        while not ended:
            _, _, ended, truncated, _ = env.step(env.action_space.sample() * 0 + 1)
            turn += 1
            assert not truncated
        turns.add(turn)
    assert turns <= {1, 2, 3, 4}
    with pytest.raises(UserError, match=r"env=leaving: its users leave one by one; SlateVectorEnv"):
        SlateVectorEnv(3, **given)
