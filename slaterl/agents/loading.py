"""Load policies from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object
from torch import Tensor

from slaterl.agents.base import Agent, BeliefPolicy
from slaterl.config.build import build_agent, build_env, catalogue_argument, env_spec
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.rollout import Policy
from slaterl.runs.files import in_short
from slaterl.training import checkpoints

Ids = Sequence[int] | Sequence[str] | None


@dataclass(frozen=True)
class LoadedPolicy:
    """A trained agent, ready to act.

    Attributes:
        policy: acts without exploration.
        env: the environment that the agent learned in, item embeddings included.
        config: the nodes env, agent, belief, ranker and item_embeddings, and `evaluation` (the run's seed and
            test_users); item_ids, the log's own, if it learned from a log.
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


def check_items(loaded: LoadedPolicy, env: Env, source: str | Path, ids: Ids = None) -> None:
    """Check that slates of a policy mean the same in an environment.

    Args:
        ids: a log's own ids of the environment's items; None without a log.

    Raises:
        UserError: it learned on other items, or on slates of another size.
    """
    numbers, own = item_numbers(loaded, env, source, ids), loaded.env
    if numbers is None:
        return
    if len(numbers) < own.num_items:
        known = set(numbers.tolist())
        first = next(i for i in range(own.num_items) if i not in known)
        lacking = f"shows the item {loaded.config['item_ids'][first]}, which {env.name} does not have"
        raise UserError(f"{source}: {lacking} ({own.num_items - len(numbers):,} of {own.num_items:,} items)")
    if (numbers.diff() < 0).any():
        raise UserError(f"{source}: its log has the items of {env.name} in another order, as text or as numbers")


def item_numbers(loaded: LoadedPolicy, env: Env, source: str | Path, ids: Ids = None) -> Tensor | None:
    """Return the numbers [N] that a policy has for the N items of an environment, found by a log's own ids.

    None if both have the same numbers for the same items.

    Args:
        ids: see `check_items`.

    Raises:
        UserError: an item is unknown to the policy, or its slates have another size.
    """
    own = loaded.env
    if own.slate_size != env.slate_size:
        sizes = f"env.slate_size is {own.slate_size} there, but {env.slate_size} here"
        raise UserError(f"{source}: learned in another environment: {sizes}")
    if own.fingerprint == env.fingerprint:
        return None
    learned = loaded.config.get("item_ids")  # checkpoints of older versions do not have them
    if ids is None or learned is None:
        there = f"learned on the item embeddings {own.fingerprint} of {own.name} ({own.num_items:,} items)"
        raise UserError(f"{source}: {there}, but env={env.name} has {env.fingerprint} ({env.num_items:,} items)")
    number = {str(one): place for place, one in enumerate(learned)}  # one log may hold 7 as a number, another as text
    unknown = [one for one in ids if str(one) not in number]
    if unknown:
        count = f"{len(unknown):,} of the {len(ids):,} items of {env.name}"
        raise UserError(f"{source}: learned from a log without the item {unknown[0]} ({count} are unknown to it)")
    return torch.tensor([number[str(one)] for one in ids])


def renumbered(data: Trajectories, numbers: Tensor | None, num_items: int) -> Trajectories:
    """Return a log's trajectories with the numbers that a policy has for its items, see `item_numbers`.

    Frame 0 shows the items 0, 1, ..., as it does in every log.

    Args:
        num_items: number of the policy's items.
    """
    if numbers is None:
        return data
    slates = numbers.to(data.slates.device)[data.slates.long()]
    slates[:, 0] = torch.arange(slates.shape[2], device=slates.device).clamp(max=num_items - 1)
    return replace(data, slates=slates).compact(num_items)
