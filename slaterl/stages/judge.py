"""How stage=offline validates and tests: in the simulator, by an estimate from the data, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig

from slaterl.agents.base import Agent
from slaterl.agents.loading import LoadedPolicy
from slaterl.data.score import normalised
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.evaluation.evaluate import evaluate_both, measure_names
from slaterl.runs.products import Product
from slaterl.stages.agent import LAST, Test, in_simulator
from slaterl.stages.estimated import estimator


class Judge(NamedTuple):
    """Chooses and tests checkpoints.

    Attributes:
        validate: measures the agent that is being trained.
        validated: names of the metrics that `validate` returns.
        test: measures the best checkpoint.
    """

    validate: Callable[[], dict[str, float]]
    validated: Sequence[str]
    test: Test


def judge_of(
    cfg: DictConfig,
    env: Env,
    agent: Agent,
    recorded: Trajectories,
    users_of: Mapping[str, Product],
    random: float | None,
    expert: float | None,
) -> Judge:
    """Return the judge that offline.validation names.

    Args:
        recorded: the dataset, on the agent's device.
        users_of: the finished user model, if offline.validation=user_model.
        random, expert: returns that score 0 and 100; None if they are unknown.
    """

    def with_score(measures: dict[str, float]) -> dict[str, float]:
        score = normalised(measures["val/return"], random, expert)
        return {**measures, "val/normalised": math.nan if score is None else score}

    kind = cfg.offline.validation
    if kind == "none":
        return _untested(agent)
    policy = agent.policy()
    measured = [f"val/{name}" for name in measure_names(env, policy if kind == "simulator" else None)]
    validated = [*measured, "val/normalised"]
    if kind == "simulator":
        users = cfg.offline.val_users
        return Judge(
            lambda: with_score(evaluate_both(policy, env, users, cfg.seed, "validation", "val/")),
            validated,
            in_simulator(env, cfg.offline.test_users, cfg.seed),
        )

    estimated = estimator(cfg, env, recorded, users_of)

    def validate() -> dict[str, float]:
        found = estimated(agent, "validation", cfg.offline.val_users)
        known = {"val/return": found["return"], "val/interval": found["interval"]}
        return with_score(dict.fromkeys(measured, math.nan) | known)

    def test(best: LoadedPolicy) -> dict[str, Any]:
        found = estimated(best.policy.agent, "test", cfg.offline.test_users)  # type: ignore[attr-defined]
        return {"test_users": None, **{f"test_{name}": value for name, value in found.items()}}

    return Judge(validate, validated, test)


def _untested(agent: Agent) -> Judge:
    """Return a judge that prefers the last checkpoint, and tests nothing."""
    return Judge(
        lambda: {LAST: float(agent.step)},
        [LAST],
        lambda best: {"test_users": None, "test_return": None, "test_interval": None},
    )
