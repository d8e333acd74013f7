"""Load policies from checkpoints."""

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
    """The policy of a trained agent.

    Attributes:
        policy: acts without exploration.
        env: simulator that the agent learned on, item embeddings included.
        config: the agent's nodes env, agent, belief, ranker, item_embeddings, and `evaluation` (its run's seed and
            test_users).
        step: step of the checkpoint.
    """

    policy: Policy
    env: TopicRec
    config: dict[str, Any]
    step: int


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> LoadedPolicy:
    """Read an agent's checkpoint. No other file is needed.

    Raises:
        UserError: the file is missing, damaged, or not an agent's checkpoint.
    """
    return policy_of(checkpoints.load(Path(path), "agent"), path, device)


def policy_of(
    state: Mapping[str, Any], source: str | Path, device: torch.device | str = "cpu", env: TopicRec | None = None
) -> LoadedPolicy:
    """Build the policy from the content of an agent's checkpoint.

    Args:
        state: content of the checkpoint.
        source: the checkpoint's file, for messages.
        device: device of the networks.
        env: simulator that the policy acts in, if it is not the one of the checkpoint. SlateQ reads its hidden state.

    Raises:
        UserError: its classes are not found, or have changed since it was written.
    """
    config: dict[str, Any] = dict(state["config"])
    catalogue: Tensor = config.pop("catalogue")  # the simulator's item embeddings, whatever their source
    try:
        own = build_env(config["env"], torch.device(device), item_embeddings=catalogue)
        knows = get_object(config["agent"]["_target_"]).SEES_SIMULATOR
        agent = build_agent(config, env if knows and env is not None else own, seed=0)
    except (ImportError, InstantiationException) as error:
        raise UserError(f"{source}: its agent cannot be built here ({in_short(error)})") from error
    with checkpoints.taken_by(agent, source):
        agent.load_state_dict(state["learner"]["module"])
    agent.step = state["learner"]["step"]  # sets how much DQN explores
    return LoadedPolicy(agent.policy(), own, config, state["learner"]["step"])


def check_environment(loaded: LoadedPolicy, spec: Mapping[str, Any], source: str | Path) -> None:
    """Raise UserError naming a setting in which a policy's environment differs from the one of `spec` (env_spec)."""
    learned = env_spec(loaded.config["env"], loaded.env)
    for key in sorted(spec):
        if key != "name" and learned.get(key) != spec[key]:
            raise UserError(
                f"{source}: learned in another environment: env.{key} is {learned.get(key)} there, {spec[key]} here"
            )
