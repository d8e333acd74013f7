"""Inverse propensity scores: on a log whose policy and clicks are known, where the truth can be computed."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slaterl.agents.offline.slate_bc import SlateBC
from slaterl.beliefs.gru import GRUBelief
from slaterl.beliefs.lstm import LSTMBelief
from slaterl.beliefs.recurrent import RecurrentBelief
from slaterl.data.trajectories import Trajectories
from slaterl.evaluation import propensities
from slaterl.evaluation.propensities import estimates, shares
from slaterl.rollout import Decision
from slaterl.seeds import seeded_weights, stream
from tests.agents.test_lengths import garbled

ITEMS, SLOTS, TURNS = 4, 2, 2
LOGGED = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])  # the log's policy, slot by slot
SLATES = torch.tensor(list(itertools.product(range(ITEMS), repeat=SLOTS)))  # [16, 2]


def click_rates(kind: str) -> Tensor:
    """P(click) [16, 2] of each slot of each slate, which depends on what the name says."""
    first, second = SLATES.unbind(1)
    rates = torch.stack([0.7 - 0.2 * first, 0.7 - 0.2 * second], 1)
    if kind == "above":
        rates[:, 1] = torch.where(first < 2, 0.9, 0.1)
    elif kind == "slate":
        rates[:, 0] = torch.where(second < 2, 0.9, 0.1)
    return rates


def agent_of(unique: bool = False, kind: type[RecurrentBelief] = GRUBelief) -> SlateBC:
    """A policy whose slates depend on the history."""
    sizes = dict(num_items=ITEMS, slate_size=SLOTS)
    settings = dict(item_dim=3, turns=2, pi_lr=1e-3, pi_hidden=[8], unique=unique)
    with seeded_weights(0, "toy"):
        belief = partial(kind, **sizes, item_dim=2, hidden_dim=5)
        agent = SlateBC(**sizes, **settings, belief=belief, generator=stream(0, "updates"))  # type: ignore[arg-type]
        with torch.no_grad():
            agent.item_embeddings.normal_(std=3)
            agent.slot_bias.normal_()
    return agent.requires_grad_(False)


def log_of(kind: str, count: int, seed: int = 0) -> Trajectories:
    """Sessions of one or two turns that the log's policy served."""
    generator = stream(seed, "toy log")
    frames = torch.zeros(count, TURNS + 1, SLOTS, dtype=torch.int64)
    for slot in range(SLOTS):
        drawn = torch.multinomial(LOGGED[slot], count * TURNS, True, generator=generator)
        frames[:, 1:, slot] = drawn.view(count, TURNS)
    rates = click_rates(kind)[frames[..., 0] * ITEMS + frames[..., 1]]
    clicks = (torch.rand(rates.shape, generator=generator) < rates).to(torch.uint8)
    clicks[:, 0] = 0
    chance = torch.stack([LOGGED[slot][frames[:, 1:, slot]] for slot in range(SLOTS)], 2)
    lengths = torch.randint(1, TURNS + 1, (count,), generator=generator, dtype=torch.int32)
    return Trajectories(frames, clicks, lengths=lengths, propensity=chance)


def truth(agent: SlateBC, data: Trajectories, kind: str) -> float:
    """The policy's clicks per session at the states of the log, over all 16 slates."""
    state = agent.actor_belief(data.slates[:, :-1], data.clicks[:, :-1])
    policy = agent.scores(agent.actor(state)).softmax(3)  # [N, H, S, items]
    of_slates = policy[:, :, 0, SLATES[:, 0]] * policy[:, :, 1, SLATES[:, 1]]
    per_turn = (of_slates * click_rates(kind).sum(1)).sum(2)
    return (per_turn * data.mask).sum(1).mean().item()


@pytest.mark.parametrize(
    ("kind", "right"), [("independent", "iips rips sips"), ("above", "rips sips"), ("slate", "sips")]
)
def test_each_estimator_finds_the_truth_where_it_should(kind: str, right: str) -> None:
    agent, data = agent_of(), log_of(kind, 20_000)
    found = estimates(data, *shares(agent, data, draws=1, generator=stream(0, "draws")), resamples=200,
                      generator=stream(0, "bootstrap"))  # fmt: skip
    expected = truth(agent, data, kind)
    assert abs(expected - data.returns.mean().item()) > 0.1  # the policy is not the log's
    for name, one in found.items():
        assert one.value is not None and one.low is not None and one.high is not None
        assert (one.low <= expected <= one.high) == (name in right.split()), (name, one, expected)
        assert one.high - one.low < 0.15 and one.weight == pytest.approx(1, abs=0.05) and one.warning is None


def test_sums_in_numpy() -> None:
    """Padding counts nowhere, and each slot has its own normalisation."""
    data = garbled(log_of("slate", 7), ITEMS, seed=3)
    slot = torch.rand(7, TURNS, SLOTS, generator=stream(1, "shares"), dtype=torch.float64)
    above = slot.cumprod(2)
    found = estimates(data, slot, above, resamples=3, generator=stream(0, "bootstrap"))
    assert data.propensity is not None and data.lengths is not None
    turns = [(n, t) for n in range(7) for t in range(int(data.lengths[n]))]
    p, c = data.propensity.double().numpy(), data.clicks[:, 1:].double().numpy()
    weights = {
        "iips": np.array([[slot[n, t, k] / p[n, t, k] for k in range(SLOTS)] for n, t in turns]),
        "rips": np.array([[slot[n, t, 0] / p[n, t, 0], above[n, t, 1] / p[n, t].prod()] for n, t in turns]),
        "sips": np.array([[above[n, t, 1] / p[n, t].prod()] * 2 for n, t in turns]),
    }
    clicks = np.array([c[n, t] for n, t in turns])
    for name, w in weights.items():
        value = ((w * clicks).sum(0) / w.sum(0)).sum() * len(turns) / 7
        assert found[name].value == pytest.approx(value, rel=1e-6)
        assert found[name].slates == pytest.approx((w.sum(0) ** 2 / (w**2).sum(0)).min(), rel=1e-6)
        assert found[name].weight == pytest.approx(w.mean(), rel=1e-6)


@pytest.mark.parametrize("kind", [GRUBelief, LSTMBelief])  # an LSTM remembers more than its state
def test_draws_come_near_the_exact_shares(kind: type[RecurrentBelief], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propensities, "USERS", 20)
    agent, data = agent_of(kind=kind), log_of("slate", 50)
    exact = shares(agent, data, draws=1, generator=stream(0, "draws"))
    monkeypatch.setattr(SlateBC, "slot_chances", lambda *given: None)
    drawn = shares(agent, data, draws=2000, generator=stream(0, "draws"))
    for one, other in zip(exact, drawn, strict=True):
        assert (one - other).abs().max() < 0.06 and (one - other).abs().mean() < 0.01


def test_without_exploration_a_share_says_whether_the_policy_shows_the_item() -> None:
    agent, data = agent_of(), log_of("slate", 50)
    slot, above = shares(agent, data, draws=5, generator=None)
    assert set(slot.unique().tolist()) == {0.0, 1.0} and torch.equal(above[..., 1], slot[..., 0] * slot[..., 1])
    assert agent_of(unique=True).slot_chances(torch.zeros(1, 5), torch.zeros(1, 2, dtype=torch.int64)) is None


def test_warnings() -> None:
    data = log_of("slate", 300)
    ones, settings = torch.ones(300, TURNS, SLOTS, dtype=torch.float64), {"resamples": 20}

    def found(slot: Tensor, log: Trajectories = data) -> propensities.Estimate:
        return estimates(log, slot, slot.cumprod(2), **settings, generator=stream(0, "bootstrap"))["iips"]

    assert data.propensity is not None
    assert found(data.propensity.double()).warning is None  # the log's own policy
    assert found(data.propensity.double()).value == pytest.approx(data.returns.mean().item())
    assert "the log never shows" in str(found(0 * ones).warning) and found(0 * ones).value is None
    few = ones.clone()
    few[5:] = 0
    assert "too little data: it rests on " in str(found(few).warning)
    few[1:] = 0  # a third of the samples draw this session not once
    assert "of the bootstrap samples lack what this policy shows" in str(found(few).warning)
    assert (found(few).value, found(few).low) == (None, None)
    assert "the mean weight is 0.50 instead of 1" in str(found(0.5 * data.propensity.double()).warning)
    silent = dataclasses.replace(data, clicks=torch.zeros_like(data.clicks))
    assert "and on 0 clicks" in str(found(data.propensity.double(), silent).warning)


@pytest.mark.parametrize("sampled", [False, True])
def test_nothing_is_decided_after_the_end_of_a_session(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data, agent, decided = log_of("independent", 40), agent_of(), SlateBC.decide
    rows: list[int] = []

    def decide(agent: SlateBC, state: Tensor, *more: Any) -> Decision:
        rows.append(len(state))
        return decided(agent, state, *more)

    monkeypatch.setattr(agent, "slot_chances", lambda *_: None)
    monkeypatch.setattr(SlateBC, "decide", decide)
    found = shares(agent, data, draws=1, generator=stream(0, "draws") if sampled else None)
    assert sum(rows) == int(data.mask.sum()) < data.mask.numel()
    assert all(share[~data.mask].eq(0).all() for share in found)
