"""TopicRec in scenarios worked out by hand; users in batches; seeds; and settings that cannot be."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.config.build import build_env
from slaterl.envs.click_models import PositionBasedModel
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.rollout import rollout
from tests.helpers import SIMULATORS, compose_config, tiny_env

CPU = torch.device("cpu")


# --- scenarios worked out by hand

NORMS = [0.6, 0.7, 0.8, 0.9]  # of the items of each topic
NOBODY = ([0, 4], [0, 0])  # a slate that nobody clicks on


def by_hand(**changes: Any) -> TopicRec:
    """Three topics of one dimension; items 0-3 belong to topic 0, 4-7 to topic 1, 8-11 to topic 2; two slots."""
    items = torch.zeros(12, 3)
    items[torch.arange(12), torch.arange(12) // 4] = torch.tensor(NORMS).repeat(3)
    settings = dict(item_embeddings=items, num_items=12, num_topics=3, topic_size=1, slate_size=2, episode_length=20)
    return tiny_env(**(settings | dict(boredom_moving_window=2, recent_items_maxlen=10) | changes))


def bored_topics(env: TopicRec, first: list[int], turns: Sequence[tuple[list[int], list[int]]]) -> list[set[int]]:
    """The bored topics of one user in turns 1, 2, ...; `first` and the turns say which slots are clicked."""
    env.reset(users=torch.full((1, 3), 1 / 3), uniforms=1 - torch.tensor([first]))
    seen = []
    for slate, clicked in turns:
        observation, _, _ = env.step(torch.tensor([slate]), uniforms=1 - torch.tensor([clicked]))
        assert observation.clicks.int().tolist() == [clicked]
        seen.append(set(env.state.bored[0].nonzero().flatten().tolist()))
    return seen


def test_topic_is_bored_for_its_timeout() -> None:
    env = by_hand(boredom_threshold=2, boredom_timeout=5)
    seen = bored_topics(env, [0, 0], [([0, 1], [1, 1]), *[NOBODY] * 9])
    assert seen == [set(), *[{0}] * 5, *[set()] * 4]  # the log forgets turn 1 at the end of turn 4


def test_topic_can_be_bored_again_at_once() -> None:
    env = by_hand(boredom_threshold=2, boredom_timeout=5, boredom_moving_window=5)
    seen = bored_topics(env, [0, 0], [([0, 1], [1, 1]), *[NOBODY] * 12])
    # the clicks of turn 1 still count in turn 7, when the first boredom ends, and are forgotten at its end
    assert seen == [set(), *[{0}] * 10, *[set()] * 2]


@pytest.mark.parametrize(("window", "bored"), [(2, []), (3, [{0}])])
def test_log_forgets_what_is_older_than_the_window(window: int, bored: list[set[int]]) -> None:
    env = by_hand(boredom_threshold=2, boredom_timeout=1, boredom_moving_window=window)
    seen = bored_topics(env, [0, 0], [([0, 4], [1, 0]), NOBODY, NOBODY, ([0, 4], [1, 0]), *[NOBODY] * 4])
    assert [topics for topics in seen if topics] == bored  # in turn 5, by the clicks of turns 1 and 4


def test_clicks_of_reset_count_but_never_grow_old() -> None:
    env = by_hand(boredom_threshold=1, boredom_timeout=1)  # bored means: in the log
    assert bored_topics(env, [1, 0], [NOBODY] * 20) == [{0}] * 20


def test_expiry_takes_the_clicks_of_reset_first() -> None:
    env = by_hand(boredom_threshold=1, boredom_timeout=1)
    seen = bored_topics(env, [1, 0], [([8, 4], [1, 0]), *[NOBODY] * 19])
    # turn 4 forgets one entry, for the age of topic 2's click; the old end, topic 0's, goes, and topic 2 stays
    assert seen == [{0}, *[{0, 2}] * 3, *[{2}] * 16]


@pytest.mark.parametrize(("memory", "bored"), [(1, [{1}, {2}]), (2, [{0, 1}, {1, 2}]), (3, [{0, 1}, {0, 1, 2}])])
def test_log_keeps_the_newest_in_rank_order(memory: int, bored: list[set[int]]) -> None:
    settings = dict(boredom_threshold=1, boredom_timeout=1, boredom_moving_window=9)
    env = by_hand(recent_items_maxlen=memory, **settings)
    assert bored_topics(env, [0, 0], [([0, 4], [1, 1]), ([8, 4], [1, 0]), NOBODY])[1:] == bored


@pytest.mark.parametrize(("slate", "divisor"), [([0, 1, 2, 4], 4), ([0, 1, 4, 5], 1), ([8, 8, 1, 8], 4)])
def test_crowded_slates_are_penalised_as_a_whole(slate: list[int], divisor: int) -> None:
    env = by_hand(slate_size=4, diversity_threshold=3, diversity_penalty=4.0, slope=1)
    taste = [0.5, 0.3, 0.2]
    env.reset(users=torch.tensor([taste]), uniforms=torch.ones(1, 4))
    env.step(torch.tensor([slate]), uniforms=torch.ones(1, 4))
    scores = [taste[item // 4] * NORMS[item % 4] / max(NORMS) for item in slate]
    expected = [0.85**rank / (1 + math.exp(0.28 - score)) / divisor for rank, score in enumerate(scores)]
    assert env.click_probabilities[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("slots", "slate"),
    [(2, [3, 7]), (3, [3, 7, 11]), (6, [3, 2, 7, 6, 11, 10]), (5, [3, 7, 11, 2, 6]), (4, [3, 7, 11, 2])],
)
def test_first_slate_is_the_best_of_each_topic(slots: int, slate: list[int]) -> None:
    """Where K does not divide S, the first topics' next best follow."""
    env = by_hand(slate_size=slots)
    observation = env.reset(2, generator=torch.Generator().manual_seed(0))
    assert observation.slate.tolist() == [slate, slate]


# --- batches and seeds


@pytest.mark.parametrize("name", SIMULATORS)
def test_users_of_a_batch_do_not_touch_each_other(name: str) -> None:
    env = build_env(compose_config(f"env={name}").env, CPU)
    generator = torch.Generator().manual_seed(3)
    turns, shape = 25, (4, env.slate_size)
    users = env.new_users(4, generator)
    uniforms = torch.rand(turns + 1, *shape, generator=generator)
    slates = torch.randint(env.num_items, (turns, *shape), generator=generator)
    oracle = torch.rand(turns, *shape, generator=generator) < 0.7

    def episode(who: slice) -> dict[str, Tensor]:
        columns: dict[str, list[Tensor]] = {"clicks": [env.reset(users=users[who], uniforms=uniforms[0, who]).clicks]}
        for t in range(turns):
            seen, reward, _ = env.step(slates[t, who], oracle_slots=oracle[t, who], uniforms=uniforms[t + 1, who])
            state = env.state
            answers = dict(clicks=seen.clicks, slates=seen.slate, reward=reward, bored=state.bored)
            for column, answer in (answers | dict(user=state.embedding, scores=env.scores)).items():
                columns.setdefault(column, []).append(answer)
        return {column: torch.stack(answers, dim=1) for column, answers in columns.items()}

    together, alone = episode(slice(None)), [episode(slice(i, i + 1)) for i in range(4)]
    assert together["bored"].any()
    for column, answers in together.items():
        torch.testing.assert_close(answers, torch.cat([one[column] for one in alone]), rtol=0, atol=1e-6)


def test_same_generator_seed_same_episode() -> None:
    def episode(seed: int) -> tuple[Tensor, Tensor]:
        env, generator = tiny_env(), torch.Generator().manual_seed(seed)
        policy = EpsilonOracle(epsilon=0.0, num_items=env.num_items, slate_size=env.slate_size, generator=generator)
        data = rollout(policy, env, 20, generator=generator, deterministic=True, hidden=True)
        return data.clicks, data.hidden["user"]

    one, same, other = episode(1), episode(1), episode(2)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_new_users_share_their_taste_out() -> None:
    """Norms of topics sum to 1; with many dimensions they follow the weights, cubes of uniform draws over their sum."""
    env = tiny_env(topic_size=50, item_embeddings=torch.ones(30, 150))
    users = env.new_users(2000, torch.Generator().manual_seed(0))
    norms = users.unflatten(1, (3, 50)).norm(dim=2)
    torch.testing.assert_close(norms.sum(1), torch.ones(2000))
    assert users.min() >= 0
    draws = torch.rand(2000, 3, generator=torch.Generator().manual_seed(1)) ** 3
    expected = (draws / draws.sum(1, keepdim=True)).amax(1).mean().item()
    assert norms.amax(1).mean().item() == pytest.approx(expected, rel=0.02)


def test_episode_ends_with_the_horizon() -> None:
    env = tiny_env(episode_length=3)
    env.reset(2, generator=torch.Generator().manual_seed(0))
    slates = torch.zeros(2, env.slate_size, dtype=torch.int64)
    assert [env.step(slates)[2] for _ in range(3)] == [False, False, True]


# --- settings and slates that cannot be

SIZES = ["num_items", "num_topics", "topic_size", "slate_size", "episode_length", "boredom_threshold"]
SIZES += ["boredom_moving_window", "boredom_timeout", "recent_items_maxlen", "diversity_threshold"]


@pytest.fixture(scope="module")
def config() -> DictConfig:
    return compose_config("env=topic_rec")


@pytest.mark.parametrize("value", [0, -1, 2.5, "ten"])
@pytest.mark.parametrize("field", SIZES)
def test_sizes_that_cannot_be(config: DictConfig, field: str, value: Any) -> None:
    node = copy.deepcopy(config)
    node.env[field] = value
    with pytest.raises(UserError, match=rf"env\.{field}={value}: expected a (whole )?number"):
        build_env(node.env, CPU)


@pytest.mark.parametrize("field", ["omega", "offset", "slope", "diversity_penalty", "short_term_boost"])
@pytest.mark.parametrize("value", ["high", math.nan])
def test_numbers_that_are_none(config: DictConfig, field: str, value: Any) -> None:
    node = copy.deepcopy(config)
    node.env[field] = value
    with pytest.raises(UserError, match=rf"env\.{field}={value}: expected a number"):
        build_env(node.env, CPU)


@pytest.mark.parametrize("omega", [0, 1])
def test_influence_from_none_to_all(omega: int) -> None:
    """A YAML file says 0 and 1 without a point."""
    env = tiny_env(omega=omega)
    env.reset(users=torch.ones(1, 6), uniforms=torch.ones(1, 4))
    expected = env.item_embeddings[5:6] if omega == 0 else env.state.embedding
    env.step(torch.tensor([[5, 6, 7, 8]]), uniforms=torch.tensor([[0.0, 1, 1, 1]]))
    assert torch.nn.functional.cosine_similarity(env.state.embedding, expected).item() == pytest.approx(1)


@pytest.mark.parametrize("found", [[1.0, 0.5], [1.0, 0.5, 0.2, 1.5]])
def test_click_model_that_gives_no_probabilities_of_four_ranks(found: list[float]) -> None:
    class Own(PositionBasedModel):
        def examination(self, slate_size: int) -> Tensor:
            return torch.tensor(found)

    with pytest.raises(UserError, match=r"click_model: Own\.examination\(4\) is .* expected 4 probabilities"):
        tiny_env(click_model=Own(decay=0.5, bottom_weight=0.0))


def test_slates_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"env\.slate_size=31: .* env\.num_items=30"):
        tiny_env(slate_size=31)
    env = tiny_env()
    env.reset(1, generator=torch.Generator().manual_seed(0))
    for item in (-1, 30):
        with pytest.raises(UserError, match=r"item ids must lie in 0\.\.29"):
            env.step(torch.tensor([[0, 1, 2, item]]))
