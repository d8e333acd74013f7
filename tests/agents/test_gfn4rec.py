"""GFN4Rec: both balances derived in NumPy, what moves, and how slates are drawn."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from slaterl.agents.list_flow import ListFlow
from slaterl.agents.offline.gfn4rec import OfflineGFN4Rec
from slaterl.agents.online.gfn4rec import GFN4Rec
from slaterl.beliefs.gru import GRUBelief
from slaterl.data.trajectories import Trajectories
from slaterl.seeds import seeded_weights, stream
from tests.agents.derivations import assert_gradients, assert_learning_rates, assert_named, rewards_of
from tests.agents.test_latent_agents import states
from tests.agents.test_sac import gradients
from tests.helpers import ITEMS, SLOTS, TURNS, Array, arrays, copy_of, mlp_forward, tiny_trajectories

WIDTH, DRAWS = 3, 4000
EPSILONS: dict[str, Any] = dict(epsilon_start=0.4, epsilon_end=0.1, epsilon_decay=50.0)


def tiny_gfn(kind: type[ListFlow] = GFN4Rec, **changes: Any) -> Any:
    """Build an agent whose probabilities are far from uniform."""
    sizes = dict(num_items=ITEMS, slate_size=SLOTS)
    settings: dict[str, Any] = dict(
        belief=partial(GRUBelief, **sizes, item_dim=2, hidden_dim=5), generator=stream(0, "update"),
        balance="detailed", unique=True, item_dim=WIDTH, turns=TURNS, forward_offset=0.5, reward_offset=0.4,
        log_normaliser=0.7, pi_lr=3e-3, pi_hidden=[12], flow_hidden=[8],
    )  # fmt: skip
    settings |= EPSILONS if kind is GFN4Rec else {}
    with seeded_weights(0, "tiny gfn"):
        agent = kind(**sizes, **(settings | changes))
        with torch.no_grad():
            agent.item_embeddings.mul_(2)
            agent.norm.bias.normal_()
    return agent


def prefix(weights: dict[str, Array], slate: Array, count: int) -> Array:
    """Join the embeddings of the first `count` items, and zeros."""
    listed = np.zeros((SLOTS, WIDTH))
    listed[:count] = weights["item_embeddings"][slate[:count]]
    return listed.ravel()


def policy(weights: dict[str, Array], state: Array, slate: Array, slot: int, unique: bool) -> Array:
    """Probability of each item in a slot, after the items in the slots before it, [N]."""
    hidden = mlp_forward(weights, "actor.", np.concatenate([state, prefix(weights, slate, slot)]))
    query = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
    query = query * weights["norm.weight"] + weights["norm.bias"]
    odds = np.exp(weights["item_embeddings"] @ query)
    if unique:
        odds[slate[:slot]] = 0
    return odds / odds.sum()


def flow_loss(weights: dict[str, Array], batch: Trajectories, balance: str, unique: bool, turns: Array) -> float:
    state, shown = states(weights, "actor", batch), batch.slates[:, 1:].long().numpy()
    losses = []
    for user, turn in itertools.product(range(len(batch)), turns):
        s, slate = state[user, turn], shown[user, turn]
        target = math.log(rewards_of(batch)[user, turn] / SLOTS + 0.4)
        step = [math.log(policy(weights, s, slate, slot, unique)[slate[slot]] + 0.5) for slot in range(SLOTS)]
        if balance == "trajectory":
            losses.append((mlp_forward(weights, "flow.", s)[0] + 0.7 + sum(step) - target) ** 2)
        else:
            inputs = [np.concatenate([s, prefix(weights, slate, count)]) for count in range(SLOTS + 1)]
            flow = [mlp_forward(weights, "flow.", given)[0] for given in inputs]
            between = [(flow[k] + step[k] + 0.7 - flow[k + 1]) ** 2 for k in range(SLOTS)]
            losses.append(np.mean(between) + (flow[SLOTS] + 0.7 - target) ** 2)
    return float(np.mean(losses))


@pytest.mark.parametrize("turns", [2, TURNS])
@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("balance", ["detailed", "trajectory"])
def test_the_loss_equals_the_derivation(balance: str, unique: bool, turns: int) -> None:
    agent, batch = tiny_gfn(balance=balance, unique=unique, turns=turns), tiny_trajectories(2)
    batch.slates[0, 1, 2] = batch.slates[0, 1, 0]  # a repeat
    drawn = torch.randperm(TURNS, generator=copy_of(agent.generators["update"]))[:turns].numpy()
    loss = partial(
        flow_loss, batch=batch, balance=balance, unique=unique, turns=drawn if turns < TURNS else range(TURNS)
    )
    before = arrays(agent)
    assert agent.update(batch)["loss/actor"].item() == pytest.approx(loss(before), rel=1e-5)
    assert_gradients(agent, before, loss, [name for name, _ in agent.named_parameters()])


def test_terms() -> None:
    agent, batch = tiny_gfn(), tiny_trajectories(2)
    before, shown = arrays(agent), batch.slates[:, 1:].long().numpy()
    state = states(before, "actor", batch)
    places = list(itertools.product(range(2), range(TURNS)))
    chances = [policy(before, state[p], shown[p], k, True)[shown[p][k]] for p in places for k in range(SLOTS)]
    empty = [mlp_forward(before, "flow.", np.concatenate([state[p], np.zeros(SLOTS * WIDTH)]))[0] for p in places]
    agent.step = 50
    terms = agent.update(batch)
    assert terms["policy/probability"].item() == pytest.approx(np.mean(chances), rel=1e-5)
    assert terms["value/log_flow"].item() == pytest.approx(np.mean(empty), rel=1e-4)
    assert terms["value/log_reward"].item() == pytest.approx(np.log(rewards_of(batch) / SLOTS + 0.4).mean(), rel=1e-5)
    assert terms["policy/epsilon"].item() == pytest.approx(0.1 + 0.3 / math.e) == agent.epsilon


def test_a_repeat_teaches_the_other_slots_alone() -> None:
    """P of an item that is on the list is 0, and no gradient is NaN."""
    agent, batch = tiny_gfn(), tiny_trajectories(2)
    batch.slates[:, 1:] = 7
    terms = agent.update(batch)
    first = policy(arrays(tiny_gfn()), states(arrays(tiny_gfn()), "actor", batch)[0, 0], np.full(SLOTS, 7), 0, True)[7]
    assert first > 0 and 0 < terms["policy/probability"] < 1 / SLOTS
    assert all(gradient.isfinite().all() for gradient in gradients(agent).values())


def test_rewards_below_zero_count_as_zero() -> None:
    agent, batch = tiny_gfn(), tiny_trajectories(2)
    batch.reward = torch.full((2, TURNS), -3.0)
    assert agent.update(batch)["value/log_reward"].item() == pytest.approx(math.log(0.4))


@pytest.mark.parametrize("balance", ["detailed", "trajectory"])
def test_better_lists_become_likelier(balance: str) -> None:
    """Every item is shown equally often in the first slot; odd items there fill the slate with clicks."""
    agent, batch = tiny_gfn(balance=balance, pi_lr=1e-2), tiny_trajectories(2 * ITEMS, turns=1)
    batch.slates[:, 1, 0] = torch.arange(ITEMS).repeat(2)
    batch.clicks[:, 1] = (batch.slates[:, 1, :1] % 2).to(batch.clicks.dtype)

    def odds() -> float:
        weights, empty = arrays(agent), np.zeros(SLOTS, dtype=int)
        chances = [policy(weights, state, empty, 0, unique=True) for state in states(weights, "actor", batch)[:, 0]]
        share = np.mean(chances, axis=0)[1::2].sum()
        return float(share / (1 - share))

    before = odds()
    for _ in range(100):
        agent.update(batch)
    assert odds() > 2 * before


@pytest.mark.parametrize("unique", [True, False])
def test_slates_are_drawn_from_the_policy_slot_by_slot(unique: bool) -> None:
    agent = tiny_gfn(OfflineGFN4Rec, unique=unique)
    state = torch.ones(1, agent.actor_belief.state_dim)
    slates = agent.decide(state.expand(DRAWS, -1), None, stream(0, "draws")).slate.numpy()
    weights, s = arrays(agent), state[0].double().numpy()
    first = policy(weights, s, np.zeros(SLOTS, dtype=int), 0, unique)
    second = sum(first[i] * policy(weights, s, np.full(SLOTS, i), 1, unique) for i in range(ITEMS))
    for slot, expected in ((0, first), (1, second)):
        found = np.bincount(slates[:, slot], minlength=ITEMS) / DRAWS
        assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / DRAWS)
    assert all(len(set(slate)) == SLOTS for slate in slates) == unique


@pytest.mark.parametrize("unique", [True, False])
def test_without_exploration_each_slot_shows_the_likeliest(unique: bool) -> None:
    agent = tiny_gfn(unique=unique)
    state = torch.randn(5, agent.actor_belief.state_dim, generator=stream(0, "states"))
    shown, weights = agent.decide(state, None, None).slate, arrays(agent)
    for s, slate in zip(state.double().numpy(), shown.numpy(), strict=True):
        assert slate.tolist() == [policy(weights, s, slate, slot, unique).argmax() for slot in range(SLOTS)]


def test_epsilon_is_the_share_of_uniform_slates() -> None:
    """A policy that is certain shows what exploration adds: whole slates without repeats, with probability epsilon."""
    agent = tiny_gfn()
    with torch.no_grad():
        agent.item_embeddings.mul_(1000)
    state = torch.ones(DRAWS, agent.actor_belief.state_dim)
    own, shown = agent.decide(state, None, None).slate, agent.decide(state, None, stream(0, "exploration")).slate
    random = shown[(shown != own).any(1)]
    assert len(random) / DRAWS == pytest.approx(0.4, abs=5 * math.sqrt(0.24 / DRAWS))
    assert all(len(set(slate)) == SLOTS for slate in random.tolist())
    counts = torch.bincount(random.flatten(), minlength=ITEMS).double()
    assert (counts / counts.sum() * ITEMS - 1).abs().max() < 5 * math.sqrt(ITEMS / counts.sum())


def test_online_and_offline_share_their_networks() -> None:
    online, offline = (tiny_gfn(kind).state_dict() for kind in (GFN4Rec, OfflineGFN4Rec))
    assert online.keys() == offline.keys() and all(torch.equal(online[name], offline[name]) for name in online)


@pytest.mark.parametrize("kind", [GFN4Rec, OfflineGFN4Rec])
def test_learning_rate(kind: type[ListFlow]) -> None:
    assert_learning_rates(tiny_gfn(kind), tiny_trajectories(3), {"actor": 3e-3})


@pytest.mark.parametrize(
    "wrong",
    [{"balance": "flow"}, {"forward_offset": 0}, {"reward_offset": -1}, {"turns": 0}, {"log_normaliser": math.inf}],
)
def test_impossible_values_are_named(wrong: dict[str, Any]) -> None:
    assert_named(GFN4Rec, wrong)
    assert_named(OfflineGFN4Rec, wrong)
