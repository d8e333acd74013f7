"""Policies from checkpoints, and those that every result is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slaterl import checkpoints
from slaterl.agents.heuristics import EpsilonOracle
from slaterl.build import build_agent, build_env
from slaterl.envs.topic_rec import TopicRec
from slaterl.evaluation import evaluate
from slaterl.rollout import Policy
from slaterl.seeds import stream


@dataclass(frozen=True)
class LoadedPolicy:
    """A trained agent as something that acts.

    Attributes:
        policy: acts, without exploration.
        env: the simulator that it learned on, item embeddings included.
        config: its nodes env, agent, belief, ranker, and `evaluation` (seed and test_users of its run).
        step: of the checkpoint.
    """

    policy: Policy
    env: TopicRec
    config: dict[str, Any]
    step: int


def load_policy(path: Path, device: torch.device | str = "cpu") -> LoadedPolicy:
    """Read an agent's checkpoint; it needs no other file.

    Raises:
        UserError: missing, damaged, or not an agent's checkpoint.
    """
    state = checkpoints.load(path, "agent")
    config: dict[str, Any] = state["config"]
    embeddings: Tensor = config.pop("item_embeddings")
    env = build_env(config["env"], torch.device(device), item_embeddings=embeddings)
    agent = build_agent(config, env, seed=0)
    agent.load_state_dict(state["learner"]["module"])
    return LoadedPolicy(agent.policy(generator=None), env, config, state["learner"]["step"])


def anchors(env: TopicRec, users: int, seed: int) -> dict[str, float]:
    """What random slates and the short-term oracle reach with the test users, as flat entries of a result."""
    flat: dict[str, float] = {}
    for name, epsilon in (("oracle", 0.0), ("random", 1.0)):
        generator = stream(seed, f"{name} slates", env.device)
        policy = EpsilonOracle(
            epsilon=epsilon, num_items=env.num_items, slate_size=env.slate_size, generator=generator
        )
        found = evaluate(policy, env, users, seed, "test")
        flat[f"{name}_return"], flat[f"{name}_interval"] = found.mean_return, found.interval
        flat[f"{name}_clicks_per_turn"], flat[f"{name}_bored_share"] = found.clicks_per_turn, found.bored_share
        flat[f"{name}_distinct_items"] = found.distinct_items
    return flat
