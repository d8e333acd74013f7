"""What a report looks at: scores of recommended items, boredom, topics and clicks, each counted again in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import trapezoid

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.agents.loading import load_policy
from slaterl.config.build import AGENT_NODES, build_agent, build_env, plain
from slaterl.data.trajectories import Trajectories
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.evaluation.evaluate import evaluate
from slaterl.report import figures
from slaterl.report.episodes import Episodes, TopicEpisodes, item_scores, watch
from slaterl.rollout import rollout
from slaterl.seeds import stream
from slaterl.training import checkpoints
from tests.helpers import SLOTS, TURNS, compose_config, copy_of, tiny_env

USERS, SEED = 40, 5


def served(env: TopicRec, epsilon: float = 0.3) -> tuple[Trajectories, torch.Generator]:
    """Episodes in which topics get bored, and the generator of users and clicks as it was before them."""
    generator = stream(SEED, "users")
    before = copy_of(generator)
    own = stream(SEED, "slates")
    policy = EpsilonOracle(epsilon=epsilon, num_items=env.num_items, slate_size=env.slate_size, generator=own)
    return rollout(policy, env, USERS, generator=generator, deterministic=True, hidden=True), before


@pytest.mark.parametrize("boost", [1.0, 1.4])
def test_item_scores_are_those_of_the_simulator(boost: float) -> None:
    """The same slates and draws again, and what the simulator itself made the clicks from, turn by turn."""
    embeddings = 3 * tiny_env().item_embeddings  # a score is a share of the largest one
    env = tiny_env(short_term_boost=boost, item_embeddings=embeddings, offset=0.2)
    data, generator = served(env)
    found, bored = item_scores(env, data), data.hidden["bored"]
    env.reset(USERS, generator=generator)
    for turn in range(TURNS):
        seen, _, _ = env.step(data.slates[:, turn + 1].long())
        assert torch.equal(seen.clicks, data.clicks[:, turn + 1].bool()), "another episode"
        torch.testing.assert_close(found[:, turn], env.scores)
        assert torch.equal(bored[:, turn], env.state.bored)
    assert 0 < bored.float().mean() < 1, "without boredom there is nothing to tell apart"


def test_items_of_bored_topics_have_no_score() -> None:
    """By hand: over the topics that are not bored, the products of the item's and the user's components."""
    env = tiny_env()
    data, _ = served(env)
    items, taste = env.item_embeddings.double().numpy(), data.hidden["user"].double().numpy()
    bored, found = data.hidden["bored"].numpy(), item_scores(env, data).numpy()
    for user, turn, slot in np.ndindex(5, TURNS, SLOTS):
        item = items[int(data.slates[user, turn + 1, slot])]
        heard = [2 * topic + i for topic in range(3) if not bored[user, turn, topic] for i in range(2)]
        expected = sum(item[i] * taste[user, turn, i] for i in heard) / float(env.max_score)
        assert found[user, turn, slot] == pytest.approx(expected, abs=1e-6)


def test_the_threshold_is_where_relevance_is_one_half() -> None:
    env = tiny_env(offset=0.33)
    assert env._relevance_of(torch.tensor(0.33)).item() == pytest.approx(0.5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained agent's, in an environment of which its file tells alone."""
    cfg = compose_config(
        "scale=smoke", "device=cpu", "agent=dqn", "env=focused_mix", "env.num_items=50", "env.offset=0.2"
    )
    env = build_env(cfg.env, torch.device("cpu"))
    config: dict[str, Any] = {name: plain(cfg[name]) for name in ("env", *AGENT_NODES)}
    agent = build_agent(config, env, seed=1)
    about = {"catalogue": env.item_embeddings, "evaluation": {"seed": 1, "test_users": USERS}}
    learner = {"module": agent.state_dict(), "step": 7}
    file = tmp_path_factory.mktemp("episodes") / "best.ckpt"
    checkpoints.save(file, {"kind": "agent", "config": config | about, "learner": learner})
    return file


@pytest.fixture(scope="module")
def watched(checkpoint: Path) -> Episodes:
    return watch(checkpoint, USERS, SEED)


def test_what_is_watched(checkpoint: Path, watched: Episodes) -> None:
    """The test users' clicks are those of the evaluation; all the rest fits the items that were shown."""
    loaded = load_policy(checkpoint)
    env = loaded.env
    assert watched.scores.shape == watched.topics.shape == watched.clicks.shape == (USERS, 20, env.slate_size)
    assert watched.bored.shape == (USERS, 20, env.num_topics) and watched.bored.dtype == bool
    tested = evaluate(loaded.policy, env, USERS, SEED, "test")
    assert watched.clicks.sum((1, 2)).mean() == pytest.approx(tested.mean_return)
    assert watched.bored.any(2).mean() == pytest.approx(tested.own["bored_share"])
    assert watched.threshold == pytest.approx(0.2)
    assert watched.topics.min() >= 0 and watched.topics.max() < env.num_topics
    again = watch(checkpoint, USERS, SEED)
    assert np.array_equal(again.scores, watched.scores), "the same checkpoint has the same picture"
    assert not np.array_equal(watch(checkpoint, USERS, SEED + 1).scores, watched.scores)


def test_scores_by_bored_topics_of_the_watched(checkpoint: Path, watched: Episodes) -> None:
    """Figure 2 from the simulator's own scores, for each number of bored topics."""
    loaded = load_policy(checkpoint)
    env = loaded.env
    generator = stream(SEED, "test users")
    before = copy_of(generator)
    data = rollout(loaded.policy, env, USERS, generator=generator, deterministic=True)
    env.reset(USERS, generator=before)
    expected: dict[int, list[float]] = {}
    for turn in range(env.episode_length):
        env.step(data.slates[:, turn + 1].long())
        for count, scores in zip(env.state.bored.sum(1).tolist(), env.scores.tolist(), strict=True):
            expected.setdefault(count, []).extend(scores)
    assert np.array_equal(watched.topics, env.item_topic.numpy()[data.slates[:, 1:].long().numpy()])
    counts = watched.bored.sum(2)
    assert set(np.unique(counts)) == set(expected) and len(expected) > 1
    for count, values in expected.items():
        assert np.sort(watched.scores[counts == count].ravel()) == pytest.approx(np.sort(values), abs=1e-5)


def test_density_draws_each_number_and_the_threshold(watched: Episodes) -> None:
    figure = figures.score_density({"dqn": watched})
    (axis,) = figure.axes
    counts, share = np.unique(watched.bored.sum(2), return_counts=True)
    often = share * watched.topics.shape[2] >= 100
    *curves, threshold = axis.lines
    assert list(threshold.get_xdata()) == [watched.threshold] * 2
    labels = [f"{n} ({k / share.sum():.0%} of turns)" for n, k in zip(counts[often], share[often], strict=True)]
    assert [curve.get_label() for curve in curves] == labels and labels
    for curve, count in zip(curves, counts[often], strict=True):
        scores, density = curve.get_xdata(), curve.get_ydata()
        assert 0.95 < trapezoid(density, scores) < 1.01, "a density"
        values = watched.scores[watched.bored.sum(2) == count]
        assert trapezoid(scores * density, scores) == pytest.approx(values.mean(), abs=0.005)


def test_return_per_turn_sums_to_the_return(watched: Episodes) -> None:
    (axis,) = figures.return_per_turn({"dqn": watched}).axes
    (line,) = axis.lines
    assert list(line.get_xdata()) == list(range(1, 21))
    assert sum(line.get_ydata()) == pytest.approx(watched.clicks.sum((1, 2)).mean())


def test_a_method_has_one_colour_on_the_page(watched: Episodes, tmp_path: Path) -> None:
    """Also where methods that do not learn, which have a level and no episodes, come before it."""
    methods = ["constant_slate", "dqn", "random"]
    runs = pd.DataFrame({"method": methods, "env": "e", "test": 1.0, "path": tmp_path})
    levels = {line.get_label(): line.get_color() for line in figures.learning_curves(runs).axes[0].lines}
    (line,) = figures.return_per_turn({"dqn": watched}, methods).axes[0].lines
    assert line.get_color() == levels["dqn"] != levels["constant_slate"]


def test_heat_map_counts_the_topics_of_each_slate(watched: Episodes) -> None:
    image = figures.slate_heat_map({"dqn": watched}, user=3).axes[0].images[0]
    topics = watched.topics[3]
    expected = np.array([[list(slate).count(topic) for slate in topics] for topic in range(10)])
    assert np.array_equal(np.asarray(image.get_array()), expected)
    ranks = figures.slate_ranks({"dqn": watched}, user=3).axes[0].images[0]
    assert np.array_equal(np.asarray(ranks.get_array()), topics.T)
    turns, slots = np.nonzero(watched.clicks[3])
    for picture, rows in ((image, topics[turns, slots]), (ranks, slots)):
        assert picture.get_extent()[:2] == [0.5, 20.5], "the first turn is 1, as in the return per turn"
        dots = picture.axes.collections[0].get_offsets()
        assert dots.tolist() == [[turn + 1, row] for turn, row in zip(turns, rows, strict=True)] and len(dots)


def test_grid_of_lambdas_is_legible_in_every_cell() -> None:
    """White on the yellow of the best cell is not."""
    rows = [("e", "m", kl, click, test) for kl, click, test in ((0.1, 0.0, 10.0), (0.1, 1.0, 200.0), (1.0, 0.0, 300.0))]
    grid = pd.DataFrame(rows, columns=["env", "method", "lambda_KL", "lambda_click", "test"])
    texts = {text.get_text(): text.get_color() for text in figures.lambda_grid(grid).axes[0].texts}
    assert texts == {"10": "white", "200": "black", "300": "black"}


def test_checkpoint_of_something_else(tmp_path: Path) -> None:
    file = tmp_path / "best.ckpt"
    file.write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"best\.ckpt"):
        watch(file, USERS, SEED)


def test_nothing_is_drawn_after_users_left() -> None:
    """Three users stay for two turns, for three and for one. Nobody is there in the fourth turn."""
    present = np.arange(4) < np.array([[2], [3], [1]])
    rewards = np.where(present, np.array([[2.0, 4, 0, 0], [4, 8, 9, 0], [6, 0, 0, 0]]), 0.0)
    few = Episodes(np.zeros((3, 4, 2), dtype=bool), rewards, present)
    (axis,) = figures.return_per_turn({"dqn": few}).axes
    assert axis.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert axis.lines[0].get_ydata().tolist() == [4, 6, 9]
    topics = np.ones((3, 4, 2), dtype=np.int64)
    scores, bored = np.full((3, 4, 2), 0.5), np.zeros((3, 4, 5), dtype=bool)
    shown = {"dqn": TopicEpisodes(few.clicks, rewards, present, scores, bored, topics, 0.5)}
    for draw in (figures.slate_heat_map, figures.slate_ranks):
        image = draw(shown).axes[0].images[0]
        assert image.get_array().shape[1] == 2 and image.get_extent()[:2] == [0.5, 2.5]
    assert figures.score_density(shown).axes
