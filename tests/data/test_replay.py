"""The replay buffer is a ring: order, wrap-around, sampling, and going on from its state dict."""

from __future__ import annotations

import pytest
import torch

from slaterl.data.replay import ReplayBuffer
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.seeds import stream
from tests.helpers import copy_of, same_columns, tiny_trajectories

CAPACITY = 5
CPU = torch.device("cpu")


def numbered(first: int, count: int) -> Trajectories:
    """Trajectories that can be told apart by any of their columns."""
    numbers = torch.arange(first, first + count)
    return Trajectories(
        slates=numbers.view(-1, 1, 1).expand(-1, 3, 2).to(torch.int16),
        clicks=(numbers % 2).view(-1, 1, 1).expand(-1, 3, 2).to(torch.uint8),
        actions=numbers.view(-1, 1, 1).expand(-1, 2, 4).float(),
    )


def numbers_of(data: Trajectories) -> list[int]:
    """And all columns of a trajectory must be of the same one."""
    found = data.slates[:, 0, 0].tolist()
    assert data.actions is not None
    assert (data.slates == data.slates[:, :1, :1]).all()
    assert data.actions[:, 1, 3].tolist() == found
    assert data.clicks[:, 2, 1].tolist() == [number % 2 for number in found]
    return found


@pytest.mark.parametrize("sizes", [[1] * 12, [2, 2, 2, 2], [3, 5, 1], [4, 4, 4], [5], [7], [2, 13, 1]])
def test_keeps_the_newest_in_order(sizes: list[int]) -> None:
    replay, pushed = ReplayBuffer(CAPACITY), 0
    for size in sizes:
        replay.push(numbered(pushed, size))
        pushed += size
        assert numbers_of(replay.trajectories()) == list(range(max(0, pushed - CAPACITY), pushed))
        assert len(replay) == min(pushed, CAPACITY)


def test_columns_keep_their_types() -> None:
    replay = ReplayBuffer(CAPACITY)
    data = tiny_trajectories(3)
    replay.push(data)
    assert same_columns(replay.trajectories(), data)


def test_recorded_rewards_go_along() -> None:
    replay, data = ReplayBuffer(CAPACITY), tiny_trajectories(CAPACITY + 2)
    data.reward = torch.arange(len(data)).unsqueeze(1) / 2 + torch.zeros(1, 6)
    replay.push(data)
    assert same_columns(replay.trajectories(), data[2:])
    other = ReplayBuffer(CAPACITY)
    other.load_state_dict(replay.state_dict(), CPU)
    assert same_columns(other.trajectories(), data[2:])


@pytest.mark.parametrize("pushed", [3, 5, 8])
def test_samples_without_repeats_from_all(pushed: int) -> None:
    replay = ReplayBuffer(CAPACITY)
    replay.push(numbered(0, pushed))
    generator = stream(0, "batches")
    stored, seen = set(range(max(0, pushed - CAPACITY), pushed)), set()
    for _ in range(30):
        sample = numbers_of(replay.sample(3, generator))
        assert len(sample) == len(set(sample)) == 3
        seen |= set(sample)
    assert seen == stored


def test_samples_are_uniform() -> None:
    replay = ReplayBuffer(CAPACITY)
    replay.push(numbered(0, 8))
    generator = stream(0, "batches")
    drawn = torch.tensor([numbers_of(replay.sample(2, generator)) for _ in range(1000)])
    counts = torch.bincount(drawn.flatten(), minlength=8)
    assert counts[:3].tolist() == [0, 0, 0]
    assert (counts[3:] - 400).abs().max() < 5 * (400 * 0.8) ** 0.5


def test_a_sample_is_a_copy() -> None:
    replay = ReplayBuffer(CAPACITY)
    replay.push(numbered(0, 5))
    replay.sample(5, stream(0, "batches")).slates.zero_()
    assert numbers_of(replay.trajectories()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("pushed", [3, 5, 7])
def test_goes_on_from_its_state_dict(pushed: int) -> None:
    replay, resumed = ReplayBuffer(CAPACITY), ReplayBuffer(CAPACITY)
    for number in range(pushed):
        replay.push(numbered(number, 1))
    state = replay.state_dict()
    assert len(state["columns"]["slates"]) == min(pushed, CAPACITY)  # no bytes for empty places
    generator = stream(0, "batches")
    other = copy_of(generator)
    resumed.load_state_dict(state, CPU)
    for number in range(pushed, pushed + 2 * CAPACITY):
        assert same_columns(replay.trajectories(), resumed.trajectories())
        assert same_columns(replay.sample(2, generator), resumed.sample(2, other))
        replay.push(numbered(number, 1))
        resumed.push(numbered(number, 1))


def test_state_dict_does_not_change_afterwards() -> None:
    replay = ReplayBuffer(CAPACITY)
    replay.push(numbered(0, 5))
    state = replay.state_dict()
    replay.push(numbered(5, 3))
    other = ReplayBuffer(CAPACITY)
    other.load_state_dict(state, CPU)
    other.push(numbered(9, 1))
    assert numbers_of(other.trajectories()) == [1, 2, 3, 4, 9]
    assert state["columns"]["slates"][:, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_empty() -> None:
    with pytest.raises(IndexError, match="empty"):
        ReplayBuffer(CAPACITY).trajectories()
    with pytest.raises(UserError, match="capacity=0"):
        ReplayBuffer(0)
