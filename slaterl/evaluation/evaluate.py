"""How good a policy is: its return over users fixed by a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slaterl.agents.heuristics import ConstantSlate, EpsilonOracle
from slaterl.envs.topic_rec import TopicRec
from slaterl.rankers.base import Ranker
from slaterl.rankers.gems import GeMS
from slaterl.rollout import Policy, rollout
from slaterl.seeds import stream

MEASURES = ("return", "interval", "clicks_per_turn", "bored_share", "distinct_items")


@dataclass(frozen=True)
class Evaluation:
    """What N users did with a policy."""

    users: int
    mean_return: float  # clicks of an episode
    interval: float  # half-width of the 95 % confidence interval of the mean over users
    clicks_per_turn: float
    bored_share: float  # of (user, turn)s in which at least one topic was bored
    distinct_items: int  # over all users and turns

    def named(self, prefix: str) -> dict[str, float]:
        """The measures as flat entries: prefix + return, interval, clicks_per_turn, bored_share, distinct_items."""
        values = (self.mean_return, self.interval, self.clicks_per_turn, self.bored_share, self.distinct_items)
        return {prefix + name: value for name, value in zip(MEASURES, values, strict=True)}


def evaluate(policy: Policy, env: TopicRec, users: int, seed: int, name: str) -> Evaluation:
    """Serve `users` users without exploration.

    Args:
        seed, name: the stream of users and their clicks ("validation", "test"): the same for every policy.
    """
    generator = stream(seed, f"{name} users", env.device)
    data = rollout(policy, env, users, generator=generator, deterministic=True, hidden=True)
    returns = data.returns
    deviation = returns.std().item() if users > 1 else math.nan
    return Evaluation(
        users=users,
        mean_return=returns.mean().item(),
        interval=1.96 * deviation / math.sqrt(users),
        clicks_per_turn=returns.mean().item() / env.episode_length,
        bored_share=data.hidden["bored"].any(2).float().mean().item(),
        distinct_items=data.slates[:, 1:].unique().numel(),
    )


def anchors(env: TopicRec, users: int, seed: int) -> dict[str, float]:
    """What the short-term oracle and random slates reach with the test users, as flat entries of a result."""
    flat: dict[str, float] = {}
    for name, epsilon in (("oracle_", 0.0), ("random_", 1.0)):
        generator = stream(seed, "agent", env.device)
        policy = EpsilonOracle(epsilon=epsilon, num_items=env.num_items, slate_size=env.slate_size, generator=generator)
        flat |= evaluate(policy, env, users, seed, "test").named(name)
    return flat


def constant_slate_return(env: TopicRec, ranker: Ranker | None, users: int, seed: int) -> float | None:
    """Return of GeMS' decode of latent 0 shown to the test users; None for other rankers, which do not decode it."""
    if not isinstance(ranker, GeMS):
        return None
    policy = ConstantSlate(slate=None, num_items=env.num_items, slate_size=env.slate_size, ranker=ranker)
    return evaluate(policy, env, users, seed, "test").mean_return
