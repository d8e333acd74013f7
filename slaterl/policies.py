"""Policies from checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object
from torch import Tensor

from slaterl import checkpoints
from slaterl.agents.base import Agent, LatentAgent
from slaterl.build import build_agent, build_env, env_spec
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.files import in_short
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


def start_from(agent: Agent, state: dict[str, Any], source: str) -> None:
    """Give an untrained agent the networks that a checkpoint has of it: policy, critics, their beliefs and targets.

    Networks that the checkpoint does not have stay as they are: critics after behaviour cloning, for example.

    Raises:
        UserError: there is no policy of this kind in it, or networks are of another size.
    """
    own, given = agent.state_dict(), state["learner"]["module"]
    name = state["config"]["agent"]["name"]
    networks = {key for key in own if not key.startswith("ranker.")}
    if not any(key.startswith("actor.") for key in networks & set(given)):
        raise UserError(f"init_from={source}: agent={name} has no policy that this agent could go on from")
    if isinstance(agent, LatentAgent) and _shape(given, "ranker.center") == _shape(own, "ranker.center"):
        there, here = (_gives(where, agent.ranker.action_dim) for where in (given, own))
        if there != here and _shape(given, "actor.0.weight")[1:] == _shape(own, "actor.0.weight")[1:]:
            fitting = "td3" if there == "actions" else "sac"
            raise UserError(
                f"init_from={source}: the policy of agent={name} gives {there}, this agent's gives {here}; "
                f"agent={fitting} can go on from it"
            )
    shared = {part for part in _parts(networks) if part in _parts(given)}
    for key in sorted(key for key in networks | set(given) if key.split(".")[0] in shared):
        there, here = (list(where[key].shape) if key in where else None for where in (given, own))
        if there != here:
            raise UserError(
                f"init_from={source}: {key} is {there} there and {here} here; give the settings of that agent={name} "
                "(agent.q_hidden, agent.pi_hidden, agent.num_critics, belief.hidden_dim, ranker)"
            )
    agent.load_state_dict(own | {key: given[key] for key in networks & set(given)})


def check_same_ranker(agent: Agent, state: dict[str, Any], source: str) -> None:
    """Raise UserError unless an agent's ranker is the one that a checkpoint learned to act through."""
    given = state["learner"]["module"]
    for key, value in agent.state_dict().items():
        if key.startswith("ranker.") and not (key in given and torch.equal(given[key].to(value.device), value)):
            raise UserError(f"init_from={source}: it learned to act through another ranker; give its settings and seed")
    unique = state["config"]["ranker"].get("unique")  # wolpertinger has a ranker of its own
    if unique is not None and isinstance(agent, LatentAgent) and agent.ranker.unique != unique:
        raise UserError(f"init_from={source}: it learned with ranker.unique={str(unique).lower()}; give the same")


def _shape(state: Mapping[str, Tensor], key: str) -> list[int]:
    return list(state[key].shape) if key in state else []


def _gives(state: Mapping[str, Tensor], action_dim: int) -> str:
    """What the policy in a state dict gives."""
    outputs = len([value for key, value in state.items() if key.startswith("actor.")][-1])
    return "actions" if outputs == action_dim else "means and deviations"


def _parts(keys: Iterable[str]) -> set[str]:
    return {key.split(".")[0] for key in keys}
