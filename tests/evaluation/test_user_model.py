"""Estimates by a user model: the interval, the coverage, and the warning that names what is not covered."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from slaterl.agents.heuristics import ConstantSlate
from slaterl.evaluation.user_model import Estimate, Members, mean_and_interval
from slaterl.rollout import rollout
from slaterl.seeds import stream
from slaterl.user_models.coverage import Coverage, coverage_of
from slaterl.user_models.env import LearnedEnv
from slaterl.user_models.saved import build_member, save_user_model
from tests.helpers import ITEMS, SLOTS, TURNS
from tests.user_models.made import NODE, families, save_tiny_user_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_user_model(tmp_path_factory.mktemp("model") / "user_model.ckpt")


def test_mean_and_interval_by_hand() -> None:
    returns = torch.tensor([[1.0, 3.0], [5.0, 9.0], [2.0, 2.0]])
    mean, interval = mean_and_interval(returns)
    assert mean == pytest.approx((2 + 7 + 2) / 3)
    between, within = np.var([2, 7, 2], ddof=1), np.mean([2, 8, 0])
    assert interval == pytest.approx(stats.t.ppf(0.975, 2) * np.sqrt(between + within / 6))


@pytest.mark.parametrize(("spread", "users"), [(3.0, 200), (0.0, 5), (1.0, 20)])
def test_the_interval_holds_the_truth(spread: float, users: int) -> None:
    """Of models whose errors are `spread` and of users whose returns deviate by 4, at least 95 % of the time."""
    generator = stream(0, f"{spread} {users}")
    held = 0
    for _ in range(400):
        models = 10 + spread * torch.randn(5, 1, generator=generator)
        mean, interval = mean_and_interval(models + 4 * torch.randn(5, users, generator=generator))
        held += abs(mean - 10) < interval
    assert held / 400 > 0.94


def test_every_member_serves_the_policy(file: Path) -> None:
    policy = ConstantSlate(slate=[1, 2, 3, 4], num_items=ITEMS, slate_size=SLOTS)
    found = Members(file, 3, CPU).estimate(policy, 59, seed=1, name="test")
    for number, mean in enumerate(found.members):
        common = dict(name="learned", num_items=ITEMS, slate_size=SLOTS, episode_length=TURNS)
        own = dict(items="0123456789abcdef", leaves=True, member=number, penalty=0.0)
        env = LearnedEnv(user_model=str(file), **own, **common)
        users = stream(1, f"test users of member {number}")
        assert rollout(policy, env, 20, generator=users, deterministic=True).returns.mean().item() == mean
    assert len(set(found.members)) == 3 and found.mean_return == pytest.approx(np.mean(found.members))
    assert found.named("test_")["test_return"] == found.mean_return


def test_a_warning_names_what_the_data_lack(file: Path) -> None:
    members = Members(file, 3, CPU)
    model = members.envs[0].model
    known = {(key % ITEMS, key // ITEMS) for key in model.coverage.cells.tolist()}
    slate = [next(item for item in range(ITEMS) if (item, rank) in known) for rank in range(SLOTS)]
    lacking = next(item for item in range(ITEMS) if (item, 2) not in known)

    def estimate(shown: list[int]) -> tuple[float, str | None]:
        policy = ConstantSlate(slate=shown, num_items=ITEMS, slate_size=SLOTS)
        found = members.estimate(policy, 6, seed=0, name="test")
        return found.covered_cells, found.warning

    share, warning = estimate([*slate[:2], lacking, slate[3]])
    assert share == 0.75 and warning is not None
    assert "fewer than 2 times: 25% of the items at their ranks" in warning
    assert f"(most of all item {lacking} at rank 3)" in warning
    share, warning = estimate(slate)
    assert share == 1 and (warning is None or "rank" not in warning)


def test_a_warning_names_slates_whose_items_are_known_alone(tmp_path: Path) -> None:
    data, held_out = (families(count, seed) for seed, count in enumerate((600, 50)))
    sizes = {"num_items": 30, "slate_size": 5, "leaves": False}
    node = {**NODE, "item_dim": 2, "hidden_dim": 2, "slot_dim": 2}
    ids = [f"SKU-{item}" for item in range(30)]
    config = {"user_model": node, "items": "0123456789abcdef", "episode_length": 3, "item_ids": ids, **sizes}
    members = [build_member(node, sizes) for _ in range(2)]
    save = partial(save_user_model, members=members, data=data, least=10, config=config)
    save(tmp_path / "new.ckpt", coverage=coverage_of(data, 30, 10, held_out), generator=stream(0, "first"))
    old = Coverage(*coverage_of(data, 30, 10)[:2])
    save(tmp_path / "old.ckpt", coverage=old, generator=stream(0, "first"))

    def estimate(file: str, slate: list[int]) -> Estimate:
        policy = ConstantSlate(slate=slate, num_items=30, slate_size=5)
        return Members(tmp_path / file, 2, CPU).estimate(policy, 4, seed=0, name="test")

    unknown = ConstantSlate(slate=[5, 6, 7, 8, 9], num_items=30, slate_size=5)
    doubted = Members(tmp_path / "new.ckpt", 2, CPU, "it is no good").estimate(unknown, 4, seed=0, name="test")
    assert doubted.warning == "it is no good"
    known = estimate("new.ckpt", [5, 6, 7, 8, 9])
    assert known.covered_slates == 1 and known.warning is None
    found = estimate("new.ckpt", [0, 5, 1, 6, 2])
    assert found.covered_slates == 0 and found.covered_cells == found.covered_pairs == 1
    assert found.warning is not None and found.warning.startswith("100% of its slates are further from the data")
    assert "hardly together, such as SKU-" in found.warning
    assert estimate("old.ckpt", [0, 5, 1, 6, 2]).covered_slates is None
