"""Episodes for the report's pictures: the slates that a policy showed to some users, and their clicks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding

from slaterl.agents.loading import load_policy
from slaterl.data.trajectories import Trajectories
from slaterl.envs.topic_rec import TopicRec
from slaterl.rollout import rollout
from slaterl.seeds import stream


@dataclass(frozen=True)
class Episodes:
    """U users' episodes with one policy.

    Attributes:
        clicks: [U, H, S] bool.
        rewards: [U, H].
        present: [U, H] bool, the turns before a user left.
    """

    clicks: NDArray[np.bool_]
    rewards: NDArray[np.float64]
    present: NDArray[np.bool_]


@dataclass(frozen=True)
class TopicEpisodes(Episodes):
    """Episodes in TopicRec, with topics and boredom.

    Attributes:
        scores: [U, H, S] scores of the recommended items, by the users' state before each turn.
        bored: [U, H, K] bool.
        topics: [U, H, S] topics of the recommended items.
        threshold: score at which an item is relevant with probability 1/2.
    """

    scores: NDArray[np.float64]
    bored: NDArray[np.bool_]
    topics: NDArray[np.int64]
    threshold: float


def item_scores(env: TopicRec, data: Trajectories) -> Tensor:
    """Return the scores [N, H, S] of the items shown, by the users' state before each turn."""
    items = embedding(data.slates[:, 1:].long(), env.item_embeddings)  # [N, H, S, D]
    return (items * data.hidden["effective"].unsqueeze(2)).sum(3) / env.max_score


def watch(checkpoint: Path, users: int, seed: int) -> Episodes:
    """Let the policy of a checkpoint serve users from the stream of test users, without exploration.

    Returns:
        TopicEpisodes if the checkpoint's environment is TopicRec.
    """
    loaded = load_policy(checkpoint)
    env, generator = loaded.env, stream(seed, "test users")
    data = rollout(loaded.policy, env, users, generator=generator, deterministic=True, hidden=isinstance(env, TopicRec))
    clicks, rewards = data.clicks[:, 1:].bool().numpy(), data.rewards.double().numpy()
    present = data.mask.numpy()
    if not isinstance(env, TopicRec):
        return Episodes(clicks, rewards, present)
    return TopicEpisodes(
        clicks,
        rewards,
        present,
        scores=item_scores(env, data).double().numpy(),
        bored=data.hidden["bored"].numpy(),
        topics=env.item_topic[data.slates[:, 1:].long()].numpy(),
        threshold=float(env.offset),
    )
