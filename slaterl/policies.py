"""Policies from checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slaterl import checkpoints
from slaterl.build import build_agent, build_env
from slaterl.envs.topic_rec import TopicRec
from slaterl.rollout import Policy


@dataclass(frozen=True)
class LoadedPolicy:
    """A trained agent as something that acts.

    Attributes:
        policy: acts, without exploration.
        env: the simulator that it learned on, item embeddings included.
        config: its nodes env, agent, belief, ranker, item_embeddings, and `evaluation` (its run's seed and test_users).
        step: of the checkpoint.
    """

    policy: Policy
    env: TopicRec
    config: dict[str, Any]
    step: int


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> LoadedPolicy:
    """Read an agent's checkpoint; it needs no other file.

    Raises:
        UserError: missing, damaged, or not an agent's checkpoint.
    """
    state = checkpoints.load(Path(path), "agent")
    config: dict[str, Any] = state["config"]
    catalogue: Tensor = config.pop("catalogue")  # of the simulator, wherever it came from
    env = build_env(config["env"], torch.device(device), item_embeddings=catalogue)
    agent = build_agent(config, env, seed=0)
    agent.load_state_dict(state["learner"]["module"])
    return LoadedPolicy(agent.policy(), env, config, state["learner"]["step"])
