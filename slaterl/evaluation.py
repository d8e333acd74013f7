"""How good a policy is: its return over users fixed by a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.console import table
from slaterl.envs.topic_rec import TopicRec
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


def normalised(value: float | None, random: float | None, expert: float | None) -> float | None:
    """A return on the scale where 0 are random slates and 100 is the expert; None where that says nothing."""
    if value is None or random is None or expert is None or expert <= random:
        return None
    return 100 * (value - random) / (expert - random)


def show_result(title: str, tested: str, result: Mapping[str, Any]) -> None:
    """The table that ends a run: the tested policy between what every policy is compared with.

    Args:
        tested: what the policy behind the result's `test_...` entries is called.
        result: flat, with the entries of `anchors`.
    """
    rows = []
    for label, prefix in ((tested, "test_"), ("short-term oracle", "oracle_"), ("random slates", "random_")):
        mean, interval, per_turn, bored, items = (result[prefix + name] for name in MEASURES)
        val = f"{result['val_return']:.1f}" if prefix == "test_" and "val_return" in result else ""
        rows.append([label, val, f"{mean:.1f} ± {interval:.1f}", f"{per_turn:.2f}", f"{bored:.0%}", f"{items:,}"])
    table(title, ["", "val", "test ± 95 %", "clicks/turn", "bored turns", "items"], rows)
