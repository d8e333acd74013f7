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

from slaterl.agents.base import Agent, BeliefPolicy
from slaterl.config.build import build_agent, build_env, catalogue_argument, env_spec
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.rollout import Policy
from slaterl.runs.files import in_short
from slaterl.training import checkpoints


@dataclass(frozen=True)
class LoadedPolicy:
    """A trained agent, ready to act.

    Attributes:
        policy: acts without exploration.
        env: the environment that the agent learned in, item embeddings included.
        config: the nodes env, agent, belief, ranker and item_embeddings, and `evaluation` (the run's seed and
            test_users).
        step: training step of the checkpoint.
    """

    policy: Policy
    env: Env
    config: dict[str, Any]
    step: int


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> LoadedPolicy:
    """Load an agent's checkpoint; no other file is needed.

    Raises:
        UserError: the file is missing, damaged, or not an agent's checkpoint.
    """
    return policy_of(checkpoints.load(Path(path), "agent"), path, device)


def policy_of(
    state: Mapping[str, Any], source: str | Path, device: torch.device | str = "cpu", env: Env | None = None
) -> LoadedPolicy:
    """Build the policy of an agent's checkpoint.

    Args:
        state: content of the checkpoint.
        source: file of the checkpoint, for messages.
        env: environment to act in, by default the one that it learned in. SlateQ reads this simulator.

    Raises:
        UserError: a class is not found, or has changed since the checkpoint was written.
    """
    config: dict[str, Any] = dict(state["config"])
    catalogue: Tensor | None = config.pop("catalogue")
    try:
        carried = {} if catalogue is None else {catalogue_argument(config["env"]) or "item_embeddings": catalogue}
        own = build_env(config["env"], torch.device(device), **carried)
        knows = get_object(config["agent"]["_target_"]).SEES_SIMULATOR
        agent = build_agent(config, env if knows and env is not None else own, seed=0)
    except (ImportError, InstantiationException) as error:
        raise UserError(f"{source}: its environment or agent cannot be built here ({in_short(error)})") from error
    with checkpoints.taken_by(agent, source):
        agent.load_state_dict(state["learner"]["module"])
    agent.step = state["learner"]["step"]  # DQN's exploration depends on it
    return LoadedPolicy(agent.policy(), own, config, state["learner"]["step"])


def reader_of(loaded: LoadedPolicy, source: str | Path) -> Agent:
    """Return the agent of a policy that needs slates and clicks alone.

    Raises:
        UserError: it reads the simulator's hidden state, or it does not act on a belief.
    """
    policy, name = loaded.policy, loaded.config["agent"]["name"]
    if getattr(policy, "sees_hidden", False):
        raise UserError(f"{source}: agent={name} reads its users' hidden state, which only a simulator shows")
    if not isinstance(policy, BeliefPolicy):
        raise UserError(f"{source}: agent={name} does not act on the state of a belief")
    return policy.agent


def check_environment(loaded: LoadedPolicy, spec: Mapping[str, Any], source: str | Path) -> None:
    """Check that a policy learned in the environment that `spec` describes (see env_spec).

    Raises:
        UserError: names a setting that differs.
    """
    learned = env_spec(loaded.config["env"], loaded.env)
    for key in sorted(spec):
        if key != "name" and learned.get(key) != spec[key]:
            raise UserError(
                f"{source}: learned in another environment: env.{key} is {learned.get(key)} there, but {spec[key]} here"
            )


def check_items(loaded: LoadedPolicy, env: Env, source: str | Path) -> None:
    """Check that slates of a policy mean the same in an environment.

    Raises:
        UserError: it learned on other items, or on slates of another size.
    """
    own = loaded.env
    if own.fingerprint != env.fingerprint:
        there = f"learned on the item embeddings {own.fingerprint} of {own.name} ({own.num_items:,} items)"
        raise UserError(f"{source}: {there}, but env={env.name} has {env.fingerprint} ({env.num_items:,} items)")
    if own.slate_size != env.slate_size:
        sizes = f"env.slate_size is {own.slate_size} there, but {env.slate_size} here"
        raise UserError(f"{source}: learned in another environment: {sizes}")
