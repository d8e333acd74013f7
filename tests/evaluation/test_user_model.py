"""Estimates by a user model: the interval, the coverage, and the warning that names what is not covered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from slaterl.agents.heuristics import ConstantSlate
from slaterl.evaluation.user_model import Members, mean_and_interval
from slaterl.rollout import rollout
from slaterl.seeds import stream
from slaterl.user_models.env import LearnedEnv
from tests.helpers import ITEMS, SLOTS, TURNS
from tests.user_models.made import save_tiny_user_model

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
