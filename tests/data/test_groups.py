"""Pieces of one user stay together where data are split or resampled; data without groups stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slaterl.data import trajectories
from slaterl.data.card import describe
from slaterl.data.card_page import as_markdown
from slaterl.data.groups import bootstrap, boundary, half_width_of_mean, numbered, shuffled, summed
from slaterl.data.score import half_width
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.evaluation.propensities import estimates
from slaterl.rankers.pretraining import SlateData
from slaterl.seeds import stream
from slaterl.training.learner import Learner
from slaterl.user_models.ensemble import Ensemble, Sessions, sessions_of
from slaterl.user_models.quality import advantage
from tests.helpers import ITEMS, tiny_trajectories
from tests.user_models.made import tiny_member

SIZES = [1, 4, 2, 7, 1, 3, 5, 2, 9, 6]  # pieces of ten users


def grouped() -> Trajectories:
    data = tiny_trajectories(sum(SIZES))
    data.group = torch.arange(len(SIZES), dtype=torch.int32).repeat_interleave(torch.tensor(SIZES)) + 3
    return data


def whole(*parts: Trajectories) -> bool:
    """Whether no user is in two parts."""
    found = [set(part.group.tolist()) for part in parts if part.group is not None]
    return len(found) == len(parts) and sum(map(len, found)) == len(set.union(*found))


@pytest.mark.parametrize("seed", range(5))
def test_an_order_with_whole_users(seed: int) -> None:
    data = grouped()
    order = shuffled(data, stream(seed, "order"))
    assert sorted(order.tolist()) == list(range(len(data)))
    mixed = data[order]
    assert mixed.group is not None and int((mixed.group.diff() != 0).sum()) == len(SIZES) - 1
    for place in range(len(data) + 1):
        cut = boundary(mixed, place)
        assert place <= cut < place + max(SIZES)
        assert cut in (0, len(data)) or mixed.group[cut - 1] != mixed.group[cut]
    # each user's pieces keep their order
    assert all((order[mixed.group == user].diff() > 0).all() for user in mixed.group.unique())


def test_a_bootstrap_sample_of_whole_users() -> None:
    data = grouped()
    counts = torch.zeros(len(data))
    for seed in range(300):
        drawn = bootstrap(data, stream(seed, "sample"))
        assert len(drawn) == len(data)
        times = torch.bincount(drawn, minlength=len(data))
        users = numbered(data)[0]
        complete = users[drawn] != users[drawn[-1]]  # the last user can be cut
        of = [set(times[users == user].tolist()) for user in users[drawn][complete].unique()]
        assert all(len(found) == 1 for found in of)
        counts += times
    assert counts.mean() == 300 and counts.std() < 40


def test_without_groups_nothing_changes() -> None:
    data = tiny_trajectories(20)
    assert torch.equal(shuffled(data, stream(1, "x")), torch.randperm(20, generator=stream(1, "x")))
    generator = stream(2, "x")
    drawn = torch.stack([bootstrap(data, generator) for _ in range(3)])
    assert torch.equal(drawn, torch.randint(20, (3, 20), generator=stream(2, "x")))
    assert boundary(data, 7) == 7 and torch.equal(summed(data.returns, data), data.returns)
    interval = half_width(data.returns.double().std().item(), 20)
    assert half_width_of_mean(data.returns, data) == pytest.approx(interval)
    assert "group" not in data.columns()
    assert "interval" not in describe(data, [{"name": "x"}], num_items=ITEMS, anchors=None)["returns"]


def test_groups_travel_with_their_trajectories(tmp_path: Path) -> None:
    data = grouped()
    trajectories.save(tmp_path / "some.safetensors", data, {})
    read, _ = trajectories.load(tmp_path / "some.safetensors")
    assert read.group is not None and torch.equal(read.group, data.group)  # type: ignore[arg-type]
    data.truncated = torch.ones(len(data), dtype=torch.bool)
    for other in (data[2:9], data.with_room()[2:9], sessions_of(data)[2:9], data.compact(ITEMS)[2:9]):
        assert other.group is not None and torch.equal(other.group, data.group[2:9])  # type: ignore[index]


def test_the_interval_of_a_mean_counts_users() -> None:
    """Copies of a trajectory add nothing. NumPy's bootstrap of users finds the same width."""
    one = tiny_trajectories(30)
    five = one[torch.arange(30).repeat_interleave(5)]
    five.group = torch.arange(30, dtype=torch.int32).repeat_interleave(5)
    assert half_width_of_mean(five.returns, five) == pytest.approx(half_width_of_mean(one.returns, one))
    data = grouped()
    data.clicks[:, 1:] = (data.group % 2).view(-1, 1, 1).to(torch.uint8)  # type: ignore[operator]
    random, returns, of = np.random.default_rng(0), data.returns.numpy(), numbered(data)[0].numpy()
    means = []
    for _ in range(4000):
        users = random.integers(len(SIZES), size=len(SIZES))
        weight = np.bincount(users, minlength=len(SIZES))[of]
        means.append((returns * weight).sum() / weight.sum())
    width = half_width_of_mean(data.returns, data)
    assert width == pytest.approx(1.96 * np.std(means), rel=0.2)
    assert width > 1.5 * half_width(data.returns.std().item(), len(data))  # type: ignore[operator]
    data.group = torch.zeros(len(data), dtype=torch.int32)
    assert half_width_of_mean(data.returns, data) is None
    card = describe(data, [{"name": "log", "trajectories": len(data)}], num_items=ITEMS, anchors=None)
    assert "± " not in as_markdown(card).split("(95 %)")[0]


def sessions(data: Trajectories, holdout: float = 0.4) -> Sessions:
    learner = Ensemble([tiny_member() for _ in range(3)], lr=0.1, patience=1)
    return Sessions(data, learner, holdout=holdout, max_steps=1, batch_size=4, seed=0, source="dataset=log")


def test_parts_of_a_user_model_share_no_user() -> None:
    parts = sessions(sessions_of(grouped()))
    assert whole(parts.held_out, parts.test, parts.training)
    assert len(parts.held_out) + len(parts.test) + len(parts.training) == sum(SIZES)
    users = numbered(parts.training)[0]
    for sample in parts.samples:
        complete = sample[users[sample] != users[sample[-1]]]
        times = torch.bincount(complete, minlength=len(users))
        assert all(len(times[users == user].unique()) == 1 for user in range(int(users.max()) + 1))
    data = grouped()
    data.group = torch.zeros_like(data.group)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="leaves none to train on; pieces of one user stay together"):
        sessions(sessions_of(data))


def test_slates_of_a_user_are_held_out_together() -> None:
    data = grouped()
    slates = SlateData(data, Learner(), holdout=0.2, source="log", batch_size=4, epochs=1, seed=0)
    assert whole(slates.held_out, slates.training) and len(slates.held_out) >= 0.2 * len(data)


def test_an_advantage_counts_users() -> None:
    data = grouped()
    chance = torch.full(data.clicks[:, 1:].shape, 0.5)
    other = chance + 0.2 * (data.group % 2).view(-1, 1, 1)  # type: ignore[operator]
    together = advantage(chance, other, data)
    alone = advantage(chance, other, Trajectories(data.slates, data.clicks))
    assert together["mean"] == alone["mean"] and together["interval"] > 1.2 * alone["interval"]  # type: ignore[operator]


def test_propensities_are_resampled_by_user() -> None:
    data = grouped()
    data.clicks[:, 1:] = (data.group % 2).view(-1, 1, 1).to(torch.uint8)  # type: ignore[operator]
    data.propensity = torch.full(data.clicks[:, 1:].shape, 0.5)
    share = torch.full(data.clicks[:, 1:].shape, 0.5, dtype=torch.float64)

    def found(data: Trajectories) -> dict[str, Any]:
        return dict(estimates(data, share, share.cumprod(2), resamples=400, generator=stream(0, "bootstrap")))

    together = found(data)
    data.group = None
    alone = found(data)
    for name, one in together.items():
        assert one.value == pytest.approx(alone[name].value)
        assert one.high - one.low > 1.5 * (alone[name].high - alone[name].low)
