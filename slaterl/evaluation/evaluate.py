"""Evaluate a policy by its mean return over users fixed by a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slaterl.agents.base import BeliefPolicy
from slaterl.agents.heuristics import ConstantSlate, EpsilonOracle
from slaterl.envs.env import Env
from slaterl.rankers.base import Ranker
from slaterl.rankers.gems import SlateVAE
from slaterl.rollout import Policy, rollout
from slaterl.seeds import stream

SAMPLED = ("return_sampled", "interval_sampled")  # of a policy that explores: names of the measures of sampled_return


@dataclass(frozen=True)
class Evaluation:
    """Measures of a policy, over all users of an evaluation."""

    users: int
    mean_return: float  # reward per episode
    interval: float  # half-width of the 95 % confidence interval of the mean over users
    clicks_per_turn: float
    own: Mapping[str, float]  # the environment's own measures, see Env.measures
    distinct_items: int  # over all users and turns

    def named(self, prefix: str) -> dict[str, float]:
        """Return the measures by the names of `measure_names`, each after a prefix."""
        values: dict[str, float] = {"return": self.mean_return, "interval": self.interval}
        values |= {"clicks_per_turn": self.clicks_per_turn, **self.own, "distinct_items": self.distinct_items}
        return {prefix + name: value for name, value in values.items()}


def measure_names(env: Env, policy: Policy | None = None) -> tuple[str, ...]:
    """Return the names of an Evaluation's measures in an environment, in the order of the columns of metrics.csv.

    Args:
        policy: if it explores, the names of `sampled_return` follow.
    """
    names = ("return", "interval", "clicks_per_turn", *env.own_measures, "distinct_items")
    return (*names, *SAMPLED) if explores(policy) else names


def evaluate(policy: Policy, env: Env, users: int, seed: int, name: str) -> Evaluation:
    """Serve `users` users without exploration.

    Args:
        seed, name: determine the users and their clicks, the same for every policy. name is "validation" or "test".
    """
    generator = stream(seed, f"{name} users", env.device)
    hidden = bool(env.own_measures) and env.hidden_columns is not None
    data = rollout(policy, env, users, generator=generator, deterministic=True, hidden=hidden)
    clicks = (data.clicks[:, 1:].sum(2, dtype=torch.float32) * data.mask).sum(1)
    mean, interval = _mean(data.returns)
    return Evaluation(
        users=users,
        mean_return=mean,
        interval=interval,
        clicks_per_turn=clicks.mean().item() / (data.turns / users),
        own=env.measures(data),
        distinct_items=data.shown()[0].unique().numel(),
    )


def explores(policy: Policy | None) -> bool:
    """Whether acting with exploration differs from acting without it."""
    return isinstance(policy, BeliefPolicy) and policy.agent.stochastic


def sampled_return(policy: Policy, env: Env, users: int, seed: int, name: str) -> dict[str, float]:
    """Serve the users of `evaluate` with exploration, as the agent acts while it learns.

    The exploration has a random stream of its own, which starts again each time. So training does not change, and two
    checkpoints meet the same noise.

    Returns:
        mean return and half-width of its 95 % interval by the names in SAMPLED; nothing if the policy does not explore.
    """
    if not explores(policy):
        return {}
    assert isinstance(policy, BeliefPolicy)
    sampling = policy.agent.policy(stream(seed, f"{name} sampling", env.device))
    generator = stream(seed, f"{name} users", env.device)
    data = rollout(sampling, env, users, generator=generator, deterministic=False)
    return dict(zip(SAMPLED, _mean(data.returns), strict=True))


def evaluate_both(policy: Policy, env: Env, users: int, seed: int, name: str, prefix: str) -> dict[str, float]:
    """Return the measures of `evaluate`, then those of `sampled_return`, each name after a prefix."""
    sampled = sampled_return(policy, env, users, seed, name)
    return evaluate(policy, env, users, seed, name).named(prefix) | {prefix + key: v for key, v in sampled.items()}


def _mean(returns: Tensor) -> tuple[float, float]:
    """Mean of returns [users] and half-width of its 95 % confidence interval."""
    deviation = returns.std().item() if len(returns) > 1 else math.nan
    return returns.mean().item(), 1.96 * deviation / math.sqrt(len(returns))


def anchors(env: Env, users: int, seed: int) -> dict[str, float]:
    """Measure random slates and, if the environment has one, the short-term oracle on the test users."""
    flat: dict[str, float] = {}
    for name, epsilon in (("oracle_", 0.0), ("random_", 1.0)):
        if epsilon < 1 and not env.fills_oracle_slots:
            continue
        generator = stream(seed, "agent", env.device)
        policy = EpsilonOracle(epsilon=epsilon, num_items=env.num_items, slate_size=env.slate_size, generator=generator)
        flat |= evaluate(policy, env, users, seed, "test").named(name)
    return flat


def constant_slate_return(env: Env, ranker: Ranker | None, users: int, seed: int) -> float | None:
    """Measure the return of showing test users the slate that GeMS decodes from latent 0; None for other rankers."""
    if not isinstance(ranker, SlateVAE):
        return None
    policy = ConstantSlate(slate=None, num_items=env.num_items, slate_size=env.slate_size, ranker=ranker)
    return evaluate(policy, env, users, seed, "test").mean_return
