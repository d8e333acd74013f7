"""How stage=offline validates and tests: in the simulator, by fitted Q evaluation on the data, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig

from slaterl.agents.base import Agent
from slaterl.agents.loading import LoadedPolicy
from slaterl.config.build import plain
from slaterl.data.score import normalised
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.evaluation.evaluate import evaluate_both, measure_names
from slaterl.evaluation.fqe import Estimate, fitted_q_evaluation
from slaterl.seeds import stream_seed
from slaterl.stages.agent import LAST, Test, in_simulator


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
    cfg: DictConfig, env: Env, agent: Agent, recorded: Trajectories, random: float | None, expert: float | None
) -> Judge:
    """Return the judge that offline.validation names.

    Args:
        recorded: the dataset, on the agent's device.
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

    def estimated(learned: Any, name: str) -> Estimate:
        settings = plain(cfg.fqe) | {"seed": stream_seed(cfg.seed, f"fqe of the {name}")}
        # On all trajectories, because on the best ones, which pct_bc learns from, every policy would look good.
        return fitted_q_evaluation(learned, recorded, num_items=env.num_items, **settings)

    def validate() -> dict[str, float]:
        estimate = estimated(agent, "validation")
        found = {"val/return": estimate.mean_return, "val/interval": estimate.interval}
        return with_score(dict.fromkeys(measured, math.nan) | found)

    def test(best: LoadedPolicy) -> dict[str, Any]:
        estimate = estimated(best.policy.agent, "test")  # type: ignore[attr-defined]
        return {"test_users": None, "test_return": estimate.mean_return, "test_interval": estimate.interval}

    return Judge(validate, validated, test)


def _untested(agent: Agent) -> Judge:
    """Return a judge that prefers the last checkpoint, and tests nothing."""
    return Judge(
        lambda: {LAST: float(agent.step)},
        [LAST],
        lambda best: {"test_users": None, "test_return": None, "test_interval": None},
    )
