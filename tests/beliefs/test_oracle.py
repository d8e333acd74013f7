"""The simulator's own state as a belief, and that what is told and recorded of users is what the next slate meets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.beliefs.base import JoinedBeliefs, states_of
from slaterl.beliefs.oracle import OracleState
from slaterl.data.trajectories import Trajectories
from slaterl.envs.catalog import generate
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.envs.topic_rec import Hidden, TopicRec
from slaterl.rollout import Decision, rollout
from slaterl.seeds import stream
from tests.helpers import ITEMS, SLOTS, TURNS, tiny_env

USERS, TOPICS, DIM = 60, 3, 6
# what makes tastes differ from users: boredom within a few turns, and a boost that is not 1; items of several norms
LIVELY = dict(slope=8, omega=0.7, short_term_boost=1.5)
LIVELY |= dict(item_embeddings=generate(ITEMS, TOPICS, 2, 1.0, seed=1) * torch.linspace(1.4, 0.7, ITEMS).unsqueeze(1))


class Watching(EpsilonOracle):
    """Slates half random, half the oracle's; keeps what it was told, and how the simulator itself was just then."""

    sees_hidden = True

    def __init__(self, env: TopicRec) -> None:
        super().__init__(epsilon=0.5, num_items=ITEMS, slate_size=SLOTS, generator=stream(0, "slates"))
        self.env = env

    def reset(self, num_users: int) -> None:
        self.told: list[Hidden] = []
        self.observations: list[Observation] = []
        self.embeddings: list[Tensor] = []
        self.met: list[dict[str, Tensor]] = []  # by the slate before

    def act(self, observation: PrivilegedObservation, deterministic: bool) -> Decision:
        assert isinstance(observation, PrivilegedObservation)
        self.told.append(Hidden(*(part.clone() for part in observation.hidden)))
        self.observations.append(Observation(observation.slate, observation.clicks))
        self.embeddings.append(self.env.state.embedding.clone())
        self.remember()
        return super().act(observation, deterministic)

    def remember(self) -> None:
        env = self.env
        met = dict(bored=env.state.bored, scores=env.scores, odds=env.click_probabilities)
        self.met.append({name: part.clone() for name, part in met.items()})


def watched(**changes: Any) -> tuple[Watching, Trajectories]:
    """One rollout that records the hidden columns; `met[t]` is how the slate of turn t was met, t = 1..H."""
    env = tiny_env(**(LIVELY | changes))
    policy = Watching(env)
    data = rollout(policy, env, USERS, generator=stream(0, "users"), deterministic=False, hidden=True)
    policy.remember()
    return policy, data


def numpy(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


# --- what is told before a slate is what the slate meets


def test_hidden_columns_are_of_the_users_as_a_turn_begins() -> None:
    """Entry t of a column is from before the slate of frame t + 1: the user's clicks on it have not moved it yet."""
    policy, data = watched()
    assert {name: column.shape for name, column in data.hidden.items()} == {
        "user": (USERS, TURNS, DIM),
        "effective": (USERS, TURNS, DIM),
        "bored": (USERS, TURNS, TOPICS),
    }
    assert data.hidden["bored"].dtype == torch.bool
    for turn in range(TURNS):
        for name, told in policy.told[turn]._asdict().items():
            assert torch.equal(data.hidden[name][:, turn], told), name
        assert torch.equal(data.hidden["user"][:, turn], policy.embeddings[turn])
        clicked = data.clicks[:, turn + 1].any(1)
        if turn < TURNS - 1:
            moved = (data.hidden["user"][:, turn] - data.hidden["user"][:, turn + 1]).abs().amax(1) > 1e-6
            assert torch.equal(moved, clicked)


def test_topics_told_bored_are_bored_while_the_slate_is_shown() -> None:
    policy, data = watched()
    bored = data.hidden["bored"]
    for turn in range(TURNS):
        assert torch.equal(bored[:, turn], policy.met[turn + 1]["bored"])
    changes = (bored[:, 1:] != bored[:, :-1]).any(2).float().mean()
    assert changes > 0.2  # else another turn's would pass for this one's


@pytest.mark.parametrize("boost", [1.0, 1.5])
def test_effective_taste_scores_the_slate(boost: float) -> None:
    """scores = item . taste / the largest norm of an item, and the taste has nothing of bored topics."""
    policy, data = watched(short_term_boost=boost)
    items = numpy(policy.env.item_embeddings)
    for turn in range(TURNS):
        taste = numpy(data.hidden["effective"][:, turn])
        shown = items[data.slates[:, turn + 1].long().numpy()]  # [B, S, D]
        expected = np.einsum("bsd,bd->bs", shown, taste) / np.linalg.norm(items, axis=1).max()
        np.testing.assert_allclose(numpy(policy.met[turn + 1]["scores"]), expected, rtol=1e-4, atol=1e-6)
    by_topic = data.hidden["effective"].unflatten(2, (TOPICS, -1))
    own = data.hidden["user"].unflatten(2, (TOPICS, -1))
    bored = data.hidden["bored"]
    assert bored.any() and (by_topic[bored] == 0).all()
    # a topic that is not bored weighs 1, or where it is the short-term one, the boost
    ratios = (by_topic.norm(dim=3) / own.norm(dim=3))[~bored]
    torch.testing.assert_close(ratios.unique().round(decimals=4).unique(), torch.tensor([1.0, boost]).unique())


@pytest.mark.parametrize("penalty", [1.0, 2.0])
def test_odds_are_those_that_the_slate_is_clicked_with(penalty: float) -> None:
    """relevance and click_odds, given what was told before, in NumPy and as the simulator then draws."""
    policy, data = watched(diversity_penalty=penalty)
    env = policy.env
    items, rank = numpy(env.item_embeddings), np.arange(SLOTS)
    topic_of = np.linalg.norm(items.reshape(ITEMS, TOPICS, -1), axis=2).argmax(1)
    slates, crowds = data.slates[:, 1:].long(), 0
    relevance = env.relevance(data.hidden["effective"])
    assert relevance.shape == (USERS, TURNS, ITEMS)
    odds = env.click_odds(relevance.gather(2, slates), env.item_topic[slates])
    for user, turn in np.ndindex(USERS, TURNS):
        slate, taste = slates[user, turn].numpy(), numpy(data.hidden["effective"][user, turn])
        scores = items @ taste / np.linalg.norm(items, axis=1).max()
        attraction = 1 / (1 + np.exp(-env.slope * (scores - env.offset)))
        np.testing.assert_allclose(relevance[user, turn], attraction, rtol=1e-4, atol=1e-6)
        crowded = np.bincount(topic_of[slate]).max() >= env.diversity_threshold
        crowds += crowded
        expected = attraction[slate] * 0.85**rank / (penalty if crowded else 1)
        np.testing.assert_allclose(odds[user, turn], expected, rtol=1e-4, atol=1e-6)
    assert 0 < crowds < USERS * TURNS
    for turn in range(TURNS):
        torch.testing.assert_close(odds[:, turn], policy.met[turn + 1]["odds"])


@pytest.mark.parametrize("slate", [[0, 11, 22, 5], [0, 0, 0, 5]])
def test_mean_clicks_of_many_users_are_the_odds(slate: list[int]) -> None:
    """One user, many times over, who has seen two slates: as told before the third, each slot is clicked that often."""
    env, generator, many = tiny_env(**LIVELY), stream(0, "users"), 20_000
    env.reset(1, generator=generator)
    one = env.state.embedding.expand(many, -1)
    clicked = torch.zeros(many, SLOTS)  # all of them, in the first turns: nothing is drawn
    env.reset(users=one, uniforms=clicked, generator=generator)
    for shown in ([1, 2, 3, 4], [7, 8, 9, 10]):
        env.step(torch.tensor(shown).expand(many, -1), uniforms=clicked)
    told = env.hidden()
    assert told.bored[0].any() and (told.effective == told.effective[0]).all()
    shown = torch.tensor(slate)
    odds = env.click_odds(env.relevance(told.effective[0])[shown], env.item_topic[shown])
    observation, reward, _ = env.step(shown.expand(many, -1))
    assert (odds > 0.02).sum() >= 2
    for found, expected in zip(observation.clicks.double().mean(0).tolist(), odds.tolist(), strict=True):
        assert found == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / many) + 1e-9)
    assert reward.mean().item() == pytest.approx(odds.sum().item(), abs=5 * math.sqrt(SLOTS / 4 / many))


def test_looking_changes_nothing() -> None:
    """An episode in which nobody asks is the one in which everybody does, twice."""
    policy, data = watched()

    class Blind(EpsilonOracle):
        def act(self, observation: Observation, deterministic: bool) -> Decision:
            assert not isinstance(observation, PrivilegedObservation)
            return super().act(observation, deterministic)

    blind = Blind(epsilon=0.5, num_items=ITEMS, slate_size=SLOTS, generator=stream(0, "slates"))
    other = rollout(blind, tiny_env(**LIVELY), USERS, generator=stream(0, "users"), deterministic=False)
    assert torch.equal(other.slates, data.slates) and torch.equal(other.clicks, data.clicks)
    assert other.hidden == {}
    first, second = policy.env.hidden(), policy.env.hidden()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- the belief


def test_state_is_the_user_and_the_bored_topics() -> None:
    policy, data = watched()
    belief = OracleState(env=policy.env)
    assert belief.sees_hidden and belief.state_dim == DIM + TOPICS
    assert not list(belief.parameters())
    (states,) = states_of([belief], data)
    assert states.shape == (USERS, TURNS, DIM + TOPICS)
    assert torch.equal(states[..., :DIM], data.hidden["user"])
    assert torch.equal(states[..., DIM:].bool(), data.hidden["bored"])
    assert set(states[..., DIM:].unique().tolist()) == {0.0, 1.0}


def test_acting_reads_what_training_reads() -> None:
    """Turn by turn and whatever the state before, since the simulator's state says it all."""
    policy, data = watched()
    belief = OracleState(env=policy.env)
    (states,) = states_of([belief], data)
    state = belief.initial_state(USERS)
    assert state.shape == states[:, 0].shape
    for turn in range(TURNS):
        seen = PrivilegedObservation(*policy.observations[turn], policy.told[turn])
        state = belief.step(seen, state)
        assert torch.equal(state, states[:, turn])
        assert torch.equal(belief.step(seen, torch.full_like(state, torch.nan)), state)


def test_several_beliefs_read_the_same() -> None:
    policy, data = watched()
    beliefs = [OracleState(env=policy.env) for _ in range(2)]
    states = torch.stack(states_of(beliefs, data))
    assert states.shape == (2, USERS, TURNS, DIM + TOPICS)
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states_of(beliefs[:1], data)[0])
    joined = JoinedBeliefs(beliefs)
    seen = PrivilegedObservation(*policy.observations[2], policy.told[2])
    both = joined.step(seen, joined.initial_state(USERS))
    assert joined.sees_hidden and torch.equal(both, torch.cat([states[0, :, 2], states[1, :, 2]], dim=1))


def test_a_state_says_nothing_of_its_own_slate() -> None:
    """Nor of any after: with the hidden columns before a turn as they are, its state is."""
    policy, data = watched()
    belief = OracleState(env=policy.env)
    (states,) = states_of([belief], data)
    data.slates[:, 3:], data.clicks[:, 3:] = 0, 0
    for column in data.hidden.values():
        column[:, 3:] = 0
    (changed,) = states_of([belief], data)
    assert torch.equal(changed[:, :3], states[:, :3]) and not torch.equal(changed[:, 3], states[:, 3])
