"""Episodes for looking at: what a policy showed to some users, and how well it suited them."""

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
        scores: [U, H, S] of the recommended items, for the user as that turn found them.
        bored: [U, H, K] bool; topics: [U, H, S] of the recommended items; clicks: [U, H, S] bool.
        threshold: the score of an item that is relevant with probability 1/2.
    """

    scores: NDArray[np.float64]
    bored: NDArray[np.bool_]
    topics: NDArray[np.int64]
    clicks: NDArray[np.bool_]
    threshold: float


def item_scores(env: TopicRec, data: Trajectories) -> Tensor:
    """Scores [N, H, S] of what was shown, by the taste that met it."""
    items = embedding(data.slates[:, 1:].long(), env.item_embeddings)  # [N, H, S, D]
    return (items * data.hidden["effective"].unsqueeze(2)).sum(3) / env.max_score


def watch(checkpoint: Path, users: int, seed: int) -> Episodes:
    """Let the policy of a checkpoint serve users of the test users' stream, without exploration."""
    loaded = load_policy(checkpoint)
    env, generator = loaded.env, stream(seed, "test users")
    data = rollout(loaded.policy, env, users, generator=generator, deterministic=True, hidden=True)
    return Episodes(
        scores=item_scores(env, data).double().numpy(),
        bored=data.hidden["bored"].numpy(),
        topics=env.item_topic[data.slates[:, 1:].long()].numpy(),
        clicks=data.clicks[:, 1:].bool().numpy(),
        threshold=float(env.offset),
    )
