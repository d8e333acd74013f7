"""Policies from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object
from torch import Tensor

from slaterl.config.build import build_agent, build_env, env_spec
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.rollout import Policy
from slaterl.runs.files import in_short
from slaterl.training import checkpoints


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
    return policy_of(checkpoints.load(Path(path), "agent"), path, device)


def policy_of(
    state: Mapping[str, Any], source: str | Path, device: torch.device | str = "cpu", env: TopicRec | None = None
) -> LoadedPolicy:
    """The policy in what was read of an agent's checkpoint.

    Args:
        source: the checkpoint's file, for messages.
        env: where the policy acts, if not where it learned; SlateQ knows the simulator that it acts in.

    Raises:
        UserError: its classes are not found, or have changed since it was written.
    """
    config: dict[str, Any] = dict(state["config"])
    catalogue: Tensor = config.pop("catalogue")  # of the simulator, wherever it came from
    try:
        own = build_env(config["env"], torch.device(device), item_embeddings=catalogue)
        knows = get_object(config["agent"]["_target_"]).SEES_SIMULATOR
        agent = build_agent(config, env if knows and env is not None else own, seed=0)
    except (ImportError, InstantiationException) as error:
        raise UserError(f"{source}: what it needs cannot be made here ({in_short(error)})") from error
    with checkpoints.taken_by(agent, source):
        agent.load_state_dict(state["learner"]["module"])
    agent.step = state["learner"]["step"]  # how much DQN explores
    return LoadedPolicy(agent.policy(), own, config, state["learner"]["step"])


def check_environment(loaded: LoadedPolicy, spec: Mapping[str, Any], source: str | Path) -> None:
    """Raise UserError naming a setting in which a policy's environment differs from the one of `spec` (env_spec)."""
    learned = env_spec(loaded.config["env"], loaded.env)
    for key in sorted(spec):
        if key != "name" and learned.get(key) != spec[key]:
            raise UserError(
                f"{source}: learned in another environment: env.{key} is {learned.get(key)} there, {spec[key]} here"
            )
