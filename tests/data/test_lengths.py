"""Sessions of different lengths outside of agents: cards, pretraining, exports and estimates read no padding."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slaterl.data import card, card_page
from slaterl.data.dependence import explained_by_history
from slaterl.data.trajectories import Trajectories
from slaterl.evaluation.dataset_card import most_frequent_slate
from slaterl.evaluation.fqe import FittedQ, Recorded, fitted_q_evaluation
from slaterl.rankers.matrix_factorization import ClickData, MatrixFactorization
from slaterl.rankers.pretraining import GeMSPretraining, SlateData
from slaterl.seeds import stream
from tests.agents.test_contract import same
from tests.agents.test_lengths import cut, garbled, with_lengths
from tests.agents.test_offline_agents import tiny
from tests.helpers import ITEMS, same_columns, tiny_gems, tiny_trajectories
from tests.meta import META, OnMeta, check_learns, to_meta

COUNT = 240
UNKNOWN = dict.fromkeys(card.ANCHORS)
LENGTHS = [1 + i % 6 for i in range(COUNT)]


def sessions(seed: int = 0, count: int = COUNT) -> Trajectories:
    """Sessions of 1 to 6 turns of two policies, with garbage in the padding."""
    data = tiny_trajectories(count)
    data.policy_id = torch.arange(count, dtype=torch.int16) % 2
    return garbled(with_lengths(data, LENGTHS[:count]), ITEMS, seed)


def equal(seed: int = 0) -> tuple[Trajectories, Trajectories]:
    """Sessions of 4 turns with padding, and without."""
    padded = garbled(with_lengths(tiny_trajectories(COUNT), 4), ITEMS, seed)
    return padded, cut(padded, 4)


def described(data: Trajectories) -> dict[str, Any]:
    names = [{"name": "one"}, {"name": "other"}]
    return card.describe(data, names if data.policy_id is not None else names[:1], num_items=ITEMS, anchors=UNKNOWN)


def test_trimmed_and_blanked() -> None:
    padded, plain = equal()
    assert same_columns(padded.trimmed(), plain)
    data = sessions()
    assert data.trimmed().lengths is not None
    assert not data.blanked().slates[:, 1:][~data.mask].any()
    assert torch.equal(data.blanked().shown()[0], data.shown()[0])
    assert len(data.shown()[0]) == data.turns == sum(LENGTHS)


def test_card() -> None:
    found = described(sessions(0))
    assert same(found, described(sessions(1)))
    assert same(described(equal()[0]), described(equal()[1]))
    data = sessions()
    assert found["lengths"] == pytest.approx(
        dict(mean=3.5, std=np.std(LENGTHS, ddof=1), min=1, q25=2, median=3.5, q75=5, max=6, truncated=0)
    )
    clicks = data.clicks.numpy()[:, 1:].sum(2)
    lengths = np.array(LENGTHS)
    assert found["clicks_per_turn"] == pytest.approx([clicks[lengths > turn, turn].mean() for turn in range(6)])
    own = np.concatenate([data.clicks.numpy()[i, 1 : n + 1] for i, n in enumerate(LENGTHS)])
    assert found["click_rate_by_rank"] == pytest.approx(own.mean(0))
    assert found["returns"]["mean"] == pytest.approx(own.sum() / COUNT)
    shown = np.concatenate([data.slates.numpy()[i, 1 : n + 1] for i, n in enumerate(LENGTHS)])
    assert found["slates"]["count"] == len(np.unique(shown, axis=0))


def test_card_of_a_policy_whose_sessions_are_shorter(tmp_path: Path) -> None:
    data = sessions()
    data.lengths = data.lengths.where(data.policy_id == 0, 2)
    data.truncated = data.policy_id == 1
    found = described(data)
    assert found["behaviours"][1]["clicks_per_turn"][2:] == [None] * 3
    assert found["behaviours"][1]["lengths"]["truncated"] == 1 and found["lengths"]["truncated"] == 0.5
    page = card_page.as_markdown(found)
    assert "240 trajectories of 1 to 5 turns (mean" in page and "unknown" in page
    card_page.draw(found, tmp_path / "card.png")


def test_dependence_finds_what_short_sessions_hold() -> None:
    """Slot 0 repeats whether the last slate was clicked. The padding would hide it."""
    count, turns = 400, 12
    generator = stream(0, "dependence")
    clicks = torch.rand(count, turns + 1, 2, generator=generator) < 0.5
    slates = torch.randint(10, (count, turns + 1, 2), generator=generator)
    slates[:, 0] = 3
    slates[:, 1:, 0] = clicks[:, :-1, 0].long()
    lengths = [1 + i % 3 for i in range(count)]
    data = with_lengths(Trajectories(slates=slates, clicks=clicks), lengths)
    found = [explained_by_history(garbled(data, 10, seed)) for seed in (0, 1)]
    assert found[0] == found[1]
    assert found[0] > 1.5 * explained_by_history(Trajectories(slates=garbled(data, 10, 0).slates, clicks=clicks))


def test_most_frequent_slate() -> None:
    assert most_frequent_slate(sessions(0).shown()[0]) == most_frequent_slate(sessions(1).shown()[0])


def test_gems_is_pretrained_on_the_sessions() -> None:
    def data_of(recorded: Trajectories) -> SlateData:
        learner = GeMSPretraining(tiny_gems(), lr=0.1, generator=stream(0, "noise"))
        return SlateData(recorded, learner, holdout=0.25, source="", batch_size=7, epochs=2, seed=0)

    recorded = sessions(count=24)
    data, again = data_of(recorded), data_of(sessions(1, count=24))
    slates, clicks = recorded[6:].shown()
    batches = list(data.take(torch.arange(data.size)))
    assert data.size == len(slates) and torch.equal(batches[0], slates) and torch.equal(batches[1], clicks)
    assert same(batches, list(again.take(torch.arange(data.size))))
    held = torch.cat([batch.slates for batch in data.held_out_batches()])
    assert torch.equal(held, recorded[:6].shown()[0])
    padded, plain = (data_of(one) for one in equal())
    assert same(list(padded.take(torch.arange(padded.size))), list(plain.take(torch.arange(plain.size))))


def test_factors_of_clicks_in_the_sessions() -> None:
    def clicks(recorded: Trajectories) -> list[torch.Tensor]:
        learner = MatrixFactorization(
            torch.ones(ITEMS, 3), len(recorded), lr=0.1, weight_decay=0.1, generator=stream(0, "negatives")
        )
        data = ClickData(recorded, learner, holdout=0.25, source="", batch_size=4, epochs=1, seed=0)
        return [*data.training, *data.held_out]

    assert same(clicks(sessions(0)), clicks(sessions(1)))
    assert len(clicks(sessions())[0]) == round(0.75 * sessions().returns.sum().item())
    assert same(*map(clicks, equal()))


@functools.cache
def estimate(kind: str, seed: int = 0) -> tuple[float, float]:
    from slaterl.agents.offline.bc import BC

    data = {
        "sessions": sessions,
        "padded": lambda seed: equal(seed)[0],
        "plain": lambda seed: equal(seed)[1],
        "all": lambda seed: with_lengths(tiny_trajectories(COUNT), 6),
        "none": lambda seed: tiny_trajectories(COUNT),
        "cut": lambda seed: dataclasses.replace(sessions(seed), truncated=torch.ones(COUNT, dtype=torch.bool)),
        "cut padded": lambda seed: dataclasses.replace(equal(seed)[0], truncated=torch.ones(COUNT, dtype=torch.bool)),
        "cut plain": lambda seed: dataclasses.replace(equal(seed)[1], truncated=torch.ones(COUNT, dtype=torch.bool)),
    }[kind](seed)
    found = fitted_q_evaluation(
        tiny(BC), data, num_items=ITEMS, discount=0.9, updates=5, batch_size=32, members=3, hidden=8, lr=1e-3, tau=0.1,
        seed=0,
    )  # fmt: skip
    return found.mean_return, found.loss


def test_fitted_q_evaluation() -> None:
    assert estimate("sessions") == estimate("sessions", 1)
    assert estimate("cut") == estimate("cut", 1) != estimate("sessions")
    for padded, plain in (("padded", "plain"), ("all", "none"), ("cut padded", "cut plain")):
        assert estimate(padded) == pytest.approx(estimate(plain), rel=1e-4)


def test_fitted_q_evaluation_of_constant_rewards_is_their_sum() -> None:
    """Every turn pays 2, so sessions of 3.5 turns return 7 whatever is learned."""
    from slaterl.agents.offline.bc import BC

    data = dataclasses.replace(sessions(), reward=torch.full((COUNT, 6), 2.0))
    found = fitted_q_evaluation(
        tiny(BC), data, num_items=ITEMS, discount=0.9, updates=3, batch_size=32, members=1, hidden=8, lr=1e-3, tau=0.1,
        seed=0,
    )  # fmt: skip
    weights = torch.poisson(torch.ones(1, COUNT), generator=stream(0, "fqe"))
    assert found.mean_return == pytest.approx(2 * (weights * torch.tensor(LENGTHS)).sum().item() / weights.sum().item())


def test_minari_episodes_have_their_own_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    from slaterl.data.formats.minari import export

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = dataclasses.replace(sessions(count=6), truncated=torch.tensor([False, True] * 3))
    export(data, {}, "lengths/test-v0", ITEMS)
    episodes = list(minari.load_dataset("lengths/test-v0").iterate_episodes())
    assert [len(episode.rewards) for episode in episodes] == LENGTHS[:6]
    for i, episode in enumerate(episodes):
        assert np.array_equal(episode.observations["slate"], data.slates[i, : LENGTHS[i] + 1])
        assert np.array_equal(episode.rewards, data.rewards[i, : LENGTHS[i]])
        ends = [turn == LENGTHS[i] - 1 for turn in range(LENGTHS[i])]
        assert episode.truncations.tolist() == [end and i % 2 == 1 for end in ends]
        assert episode.terminations.tolist() == [end and i % 2 == 0 for end in ends]


def test_fitted_q_ends_where_sessions_end() -> None:
    """m = (r + gamma * w' * m') / w by hand: sessions of 1 and 3 turns, and one of 2 turns that the log cut."""
    data = with_lengths(tiny_trajectories(3, turns=3), [1, 3, 2], [False, False, True]).with_room()
    own = 2 * torch.rand(data.actions.shape, generator=stream(0, "own")) - 1
    ensemble = FittedQ(data, num_items=ITEMS, members=2, hidden=8, discount=0.9, lr=1e-3, tau=0.1)
    weights = torch.tensor([[1.0, 2, 3], [2, 0, 1]])
    with torch.no_grad():
        states = ensemble.states(data)
        here, ahead = (ensemble.values(ensemble.heads, states, action) for action in (data.actions, own))
    left, rewards, errors = ([1], [3, 2, 1], [4, 3, 2]), data.rewards, []
    for member in range(2):
        for user, length in enumerate([1, 3, 2]):
            for turn in range(length):
                w, following = (sum(0.9**k for k in range(n)) for n in (left[user][turn], left[user][turn] - 1))
                target = (rewards[user, turn] + 0.9 * following * ahead[member, user, turn + 1 if following else 0]) / w
                errors.append(weights[member, user] * (here[member, user, turn] - target) ** 2)
    loss = ensemble.update(Recorded(data, own, weights))["loss/critic"]
    assert len(errors) == 12 and loss.item() == pytest.approx(float(sum(errors)) / 12, rel=1e-4)


@pytest.mark.parametrize("truncated", [False, [True, False, True]])
def test_fitted_q_does_not_wait_for_lengths(truncated: Any) -> None:
    data = with_lengths(tiny_trajectories(3), [1, 6, 2], truncated).with_room()
    ensemble = FittedQ(data, num_items=ITEMS, members=2, hidden=8, discount=0.9, lr=1e-3, tau=0.1)
    ensemble, data = to_meta(ensemble), to_meta(data)
    with OnMeta():
        batch = Recorded(data, data.actions, torch.ones(2, 3, device=META))
        check_learns(ensemble, [batch, batch])
        assert ensemble.reward(data, data.actions).shape == (2, 3)
