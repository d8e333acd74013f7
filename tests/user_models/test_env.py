"""env=learned: its users click as the members say, and everything that runs in a simulator runs in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.config.build import env_spec
from slaterl.config.check import check_config
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.rollout import rollout
from slaterl.run import run_stage
from slaterl.runs.products import product_of
from slaterl.seeds import stream
from slaterl.user_models.env import LearnedEnv
from tests.helpers import ITEMS, SLOTS, TURNS, compose_config
from tests.user_models.made import save_tiny_user_model, tiny_member, tiny_sessions

USERS = 40


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_tiny_user_model(tmp_path / "user_model.ckpt")


def learned_env(file: Path, **changes: Any) -> LearnedEnv:
    sizes: dict[str, Any] = dict(name="learned", num_items=ITEMS, slate_size=SLOTS, episode_length=TURNS)
    settings: dict[str, Any] = dict(user_model=str(file), items="0123456789abcdef", leaves=True, member=None)
    settings |= {"penalty": 0.0, **sizes}
    return LearnedEnv(**(settings | changes))


def served(env: LearnedEnv, users: int = USERS) -> Trajectories:
    policy = EpsilonOracle(epsilon=1, num_items=ITEMS, slate_size=SLOTS, generator=stream(0, "slates"))
    return rollout(policy, env, users, generator=stream(0, "users"), deterministic=True)


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_clicks_and_rewards_by_the_members(file: Path, penalty: float) -> None:
    """The draws are made again, and the probabilities come from one pass over the whole trajectories."""
    env, generator = learned_env(file, penalty=penalty), stream(0, "users")
    data = served(env)
    belongs = torch.randint(3, (USERS,), generator=generator)
    torch.randint(7, (USERS,), generator=generator)
    assert set(belongs.tolist()) == {0, 1, 2}
    with torch.no_grad():
        predicted = [tiny_member(seed)(data) for seed in range(3)]
    chances = torch.stack([logits.clicks.sigmoid() for logits in predicted])  # [3, B, H, S]
    leaving = torch.stack([logits.leaving.sigmoid() for logits in predicted])  # [3, B, H]
    everyone, present, lengths = torch.arange(USERS), torch.ones(USERS, dtype=torch.bool), torch.zeros(USERS)
    for turn in range(TURNS):
        lengths += present
        drawn = torch.rand(USERS, SLOTS, generator=generator) < chances[belongs, everyone, turn]
        assert torch.equal(data.clicks[present, turn + 1].bool(), drawn[present])
        present = present & ~(torch.rand(USERS, generator=generator) < leaving[belongs, everyone, turn])
    assert torch.equal(data.lengths.float(), lengths) and len(lengths.unique()) > 2
    clicks = data.clicks[:, 1:].sum(2).float()
    if penalty:
        expected = chances.sum(3)  # [3, B, H]
        spread = ((expected - expected.mean(0)).square().sum(0) / 2).sqrt()
        torch.testing.assert_close(data.rewards, (clicks - 2 * spread) * data.mask)
    else:
        assert data.reward is None and torch.equal(data.rewards, clicks)
    assert env.reward_is_clicks == (penalty == 0)


def test_first_frames_are_those_of_the_data(file: Path) -> None:
    first = [
        torch.cat([data.slates[:, 0], data.clicks[:, 0]], 1) for data in (tiny_sessions(), served(learned_env(file)))
    ]
    assert torch.equal(first[0].unique(dim=0), first[1].unique(dim=0))


def test_one_member(file: Path, tmp_path: Path) -> None:
    alone = served(learned_env(file, member=0, penalty=1.0))
    only = served(learned_env(save_tiny_user_model(tmp_path / "one.ckpt", members=1)))
    assert torch.equal(alone.clicks, only.clicks)
    assert torch.equal(alone.rewards, only.rewards), "one member cannot disagree"
    assert not torch.equal(alone.clicks, served(learned_env(file, member=1)).clicks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"member": 3}, "env.member=3: env.user_model={} has 3 members"),
        ({"num_items": 40}, "env.num_items=40: env.user_model={} has 30"),
        ({"slate_size": 3}, "env.slate_size=3: env.user_model={} has 4"),
        ({"leaves": False}, "env.leaves=False: env.user_model={} has True"),
        ({"items": "other"}, "env.items=other: env.user_model={} has 0123456789abcdef"),
    ],
)
def test_what_does_not_fit_the_file(file: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        served(learned_env(file, **changes))
    assert str(raised.value) == message.format(file)


def test_settings_come_from_the_file(file: Path, tmp_path: Path) -> None:
    cfg = compose_config("env=learned", f"env.user_model={file}")
    assert (cfg.env.num_items, cfg.env.slate_size, cfg.env.episode_length) == (ITEMS, SLOTS, TURNS)
    moved = save_tiny_user_model(tmp_path / "elsewhere.ckpt")
    names = [env_spec(compose_config("env=learned", f"env.user_model={path}").env) for path in (file, moved)]
    assert names[0] == names[1] and str(file) not in str(names[0]), "the content of the file counts, not its place"
    other = save_tiny_user_model(tmp_path / "other.ckpt", members=2)
    assert env_spec(compose_config("env=learned", f"env.user_model={other}").env) != names[0]


def test_a_scale_does_not_change_how_long_sessions_are(file: Path) -> None:
    """scale=smoke shortens the episodes of simulators to 20 turns."""
    cfg = compose_config("env=learned", f"env.user_model={file}", "scale=smoke")
    check_config(cfg)
    assert cfg.env.episode_length == TURNS != 20
    cfg = compose_config("env=learned", f"env.user_model={file}", "env.episode_length=3")
    check_config(cfg, given=["env.episode_length"])
    assert cfg.env.episode_length == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "env.user_model: a value is needed"),
        (["env.user_model=nowhere.ckpt"], "env.items: nowhere.ckpt: no such checkpoint"),
    ],
)
def test_no_file(more: list[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        check_config(compose_config("env=learned", *more))
    assert str(raised.value).startswith(message)


def test_an_agent_trains_in_it_and_is_tested_in_the_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user model of random slates; GeMS learns from slates that it is asked about."""
    common = ["scale=smoke", "device=cpu", "threads=1", f"paths.root={tmp_path}"]
    cfg = compose_config("stage=user_model", "dataset=random", *common)
    run_stage(cfg)
    model = product_of(cfg, "user_model").run.path / "user_model.ckpt"
    here = ["env=learned", f"env.user_model={model}", "env.penalty=0.5", "logged_data.epsilon=1"]
    online = compose_config("stage=online", *here, *common)
    run_stage(online)
    run = product_of(online, "online").run
    assert run.path.parent == tmp_path / "online" / "learned" and run.result()["item_embeddings"] != "learned"
    model.rename(tmp_path / "moved.ckpt")  # the checkpoint acts without it
    monkeypatch.setattr("slaterl.stages.evaluate.given_keys", lambda: {"env"})
    elsewhere = compose_config("stage=evaluate", f"checkpoint={run.path / 'best.ckpt'}", "env=focused_topdown", *common)
    run_stage(elsewhere)
    assert product_of(elsewhere, "evaluate").run.result()["env"] == "focused_topdown"
