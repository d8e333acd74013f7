"""TopicRec against the published simulator's records and means, and against a plain model of one user."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.config.build import build_env, plain
from slaterl.envs.click_models import PositionBasedModel
from slaterl.envs.topic_rec import TopicRec
from slaterl.rollout import rollout
from tests.helpers import Array, compose_config, tiny_env

CPU = torch.device("cpu")


# --- the records of the published simulator


class Replay(NamedTuple):
    """What a file holds, and what the simulator answers to the same slates and draws."""

    file: dict[str, Tensor]
    found: dict[str, Tensor]  # [B, H, ...] under the file's names; best_scores [B, H, S] of the S best items
    first: tuple[Tensor, Tensor]  # the slate and clicks of reset


@pytest.fixture(scope="module")
def replay(parity_file: Path) -> Replay:
    arrays = dict(np.load(parity_file))
    params = json.loads(str(arrays.pop("params")))
    node = plain(compose_config("env=topic_rec", f"click_model={params.pop('click_model')}").env)
    file = {name: torch.from_numpy(array) for name, array in arrays.items()}
    env = build_env(node | params, CPU, item_embeddings=file["item_embeddings"])
    first = env.reset(users=file["user_init"], uniforms=file["reset_uniforms"])
    turns: dict[str, list[Tensor]] = {}
    all_slots = torch.ones_like(first.clicks)
    for turn in range(env.episode_length):
        slates, uniforms = file["slates"][:, turn].long(), file["uniforms"][:, turn]
        before = copy.deepcopy(env.state)
        env.step(slates, oracle_slots=all_slots, uniforms=uniforms)
        best = env.scores
        env.state = before
        observation, _, _ = env.step(slates, uniforms=uniforms)
        state = env.state
        answers = dict(clicks=observation.clicks, scores=env.scores, click_probs=env.click_probabilities)
        answers |= dict(bored=state.bored, user_state=state.embedding, best_scores=best)
        for name, answer in answers.items():
            turns.setdefault(name, []).append(answer)
    return Replay(file, {name: torch.stack(answers, dim=1) for name, answers in turns.items()}, tuple(first))


def test_parity_of_reset(replay: Replay) -> None:
    slate, clicks = replay.first
    assert torch.equal(slate, replay.file["reset_slate"].long())
    assert torch.equal(clicks, replay.file["reset_clicks"].bool())


@pytest.mark.parametrize("name", ["clicks", "bored"])
def test_parity_is_exact(replay: Replay, name: str) -> None:
    assert torch.equal(replay.found[name], replay.file[name].bool())
    assert replay.found[name].any()


@pytest.mark.parametrize("name", ["scores", "click_probs", "user_state"])
def test_parity_of_numbers(replay: Replay, name: str) -> None:
    torch.testing.assert_close(replay.found[name], replay.file[name], rtol=0, atol=1e-5)


def test_parity_of_oracle_slots(replay: Replay) -> None:
    """Scores are compared, not items: near ties may swap two items."""
    slots = replay.file["oracle_slots"]
    assert slots.any()
    torch.testing.assert_close(replay.found["best_scores"][slots], replay.file["scores"][slots], rtol=0, atol=1e-5)


# --- one user in plain Python


class OneUser:
    """The user model for a single user, with lists and loops and in double precision."""

    def __init__(self, env: TopicRec, bottom_weight: float, embedding: Tensor) -> None:
        self.env, self.bottom_weight = env, bottom_weight
        self.items = env.item_embeddings.double().numpy()
        self.topics = [int(self.norms(item).argmax()) for item in self.items]
        self.user = embedding.double().numpy()
        self.turn, self.short_term = 0, 0
        self.bored: dict[int, int] = {}  # topic -> turns left
        self.log: list[int] = []  # topics, oldest first
        self.stamps: list[int] = []  # turns of the log's newest entries; those of reset have none

    def norms(self, embedding: Array) -> Array:
        return np.linalg.norm(embedding.reshape(self.env.num_topics, -1), axis=1)

    def look(self, slate: list[int], uniforms: Array, effective: Array) -> list[int]:
        """Set scores, probabilities and clicks; returns the clicked items."""
        self.scores = self.items @ effective / max(np.linalg.norm(item) for item in self.items)
        topics = [self.topics[item] for item in slate]
        ranks = np.arange(len(slate))
        examination = (1 - self.bottom_weight) * 0.85**ranks + self.bottom_weight * 0.85 ** ranks[::-1]
        relevance = 1 / (1 + np.exp(-(self.scores[slate] - self.env.offset) * self.env.slope))
        crowded = max(topics.count(topic) for topic in topics) >= self.env.diversity_threshold
        self.probabilities = relevance / (self.env.diversity_penalty if crowded else 1) * examination
        self.clicks = uniforms < self.probabilities
        return [item for item, click in zip(slate, self.clicks, strict=True) if click]

    def reset(self, slate: list[int], uniforms: Array) -> None:
        clicked = self.look(slate, uniforms, self.user)
        self.log = [self.topics[item] for item in clicked][-self.env.recent_items_maxlen :]
        self.short_term = self.topics[clicked[-1]] if clicked else 0

    def step(self, slate: list[int], uniforms: Array) -> None:
        env = self.env
        self.turn += 1
        self.bored = {topic: left - 1 for topic, left in self.bored.items() if left > 1}
        for topic in range(env.num_topics):
            if topic not in self.bored and self.log.count(topic) >= env.boredom_threshold:
                self.bored[topic] = env.boredom_timeout
        effective = self.user.reshape(env.num_topics, -1).copy()
        effective[self.short_term] *= env.short_term_boost
        effective[list(self.bored)] = 0
        clicked = self.look(slate, uniforms, effective.flatten())
        for item in clicked:
            self.log = [*self.log, self.topics[item]][-env.recent_items_maxlen :]
            self.stamps = [*self.stamps, self.turn][-env.recent_items_maxlen :]
            self.user = env.omega * self.user + (1 - env.omega) * self.items[item]
            self.user = self.user / self.norms(self.user).sum()
        while self.stamps and self.stamps[0] < self.turn - env.boredom_moving_window:
            self.stamps.pop(0)
            self.log.pop(0)
        if clicked and self.short_term in self.bored:
            self.short_term = self.topics[clicked[-1]]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bottom_weight": 0.5, "diversity_penalty": 5.0},
        {"recent_items_maxlen": 2, "boredom_threshold": 2},
        {"boredom_threshold": 1, "boredom_timeout": 1, "boredom_moving_window": 1},
        {"short_term_boost": 1.5, "omega": 0.5},
        {"boredom_timeout": 7, "boredom_moving_window": 8, "recent_items_maxlen": 20, "slope": 20},
        {"num_topics": 6, "topic_size": 1, "slate_size": 3, "diversity_threshold": 2},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_agrees_with_one_user_in_plain_python(changes: dict[str, Any]) -> None:
    settings = {"bottom_weight": 0.0, "episode_length": 40} | changes
    bottom_weight = settings.pop("bottom_weight")
    env = tiny_env(click_model=PositionBasedModel(decay=0.85, bottom_weight=bottom_weight), **settings)
    generator = torch.Generator().manual_seed(7)
    shape = (24, env.slate_size)
    embeddings = env.new_users(24, generator)
    uniforms = torch.rand(shape, generator=generator)
    slates, _ = env.reset(users=embeddings, uniforms=uniforms)
    users = [OneUser(env, bottom_weight, embedding) for embedding in embeddings]
    for user, slate, draws in zip(users, slates.tolist(), uniforms.numpy(), strict=True):
        user.reset(slate, draws)
    clicks_of_bored, ever_bored = 0, 0
    for _ in range(env.episode_length):
        slates = torch.randint(env.num_items, shape, generator=generator)
        oracle = torch.rand(shape, generator=generator) < 0.5
        uniforms = torch.rand(shape, generator=generator)
        (slates, clicks), reward, _ = env.step(slates, oracle_slots=oracle, uniforms=uniforms)
        for i, user in enumerate(users):
            user.step(slates[i].tolist(), uniforms[i].numpy())
            assert set(env.state.bored[i].nonzero().flatten().tolist()) == user.bored.keys()
            np.testing.assert_allclose(env.click_probabilities[i], user.probabilities, atol=1e-5)
            assert clicks[i].tolist() == user.clicks.tolist()
            assert reward[i] == user.clicks.sum()
            np.testing.assert_allclose(env.state.embedding[i], user.user, atol=1e-5)
            best = np.sort(user.scores)[::-1][: env.slate_size]
            np.testing.assert_allclose(env.scores[i][oracle[i]], best[oracle[i].numpy()], atol=1e-5)
            ever_bored += len(user.bored)
            clicks_of_bored += len(user.bored) > 0 and int(user.clicks.sum())
    assert ever_bored and clicks_of_bored  # else the comparison says little


# --- the published means

# mean return and standard error of the published simulator: random slates, short-term oracle
PUBLISHED = {
    "focused_topdown": ((33.7, 0.5), (104.1, 2.0)),
    "focused_mix": ((33.5, 0.5), (101.4, 1.9)),
    "focused_divpen": ((31.3, 0.5), (76.6, 1.0)),
    "diffuse_topdown": ((32.8, 0.5), (97.7, 1.7)),
    "diffuse_mix": ((33.2, 0.5), (96.7, 1.6)),
    "diffuse_divpen": ((31.5, 0.4), (76.6, 0.8)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_means(name: str, shared: Callable[[str], Path]) -> None:
    file = shared("reference") / "embeddings" / f"item_embeddings_{name.split('_')[0]}.pt"
    env = build_env(compose_config(f"env={name}", f"env.item_embeddings.path={file}").env, CPU)
    generator = torch.Generator().manual_seed(11)
    for epsilon, (published, published_error) in zip((1.0, 0.0), PUBLISHED[name], strict=True):
        policy = EpsilonOracle(epsilon=epsilon, num_items=1000, slate_size=10, generator=generator)
        returns = rollout(policy, env, 400, generator=generator, deterministic=True).returns
        error = returns.std().item() / math.sqrt(len(returns))
        assert abs(returns.mean().item() - published) < 3 * math.hypot(error, published_error)
