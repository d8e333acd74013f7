"""The behaviour policies of offline datasets: what they are, and the trajectories that they collect."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from slaterl.agents.base import BeliefPolicy, LatentAgent
from slaterl.agents.heuristics import EpsilonOracle
from slaterl.agents.loading import check_environment, load_policy, policy_of
from slaterl.agents.noisy import NoisyPolicy
from slaterl.agents.offline.base import with_actions
from slaterl.console import note, progress
from slaterl.data.replay import ReplayBuffer
from slaterl.data.trajectories import Trajectories
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.rankers.base import Ranker
from slaterl.rollout import Policy, collect
from slaterl.runs.files import fingerprint_of
from slaterl.seeds import stream
from slaterl.training import checkpoints

CPU = torch.device("cpu")


class Collected(NamedTuple):
    """The trajectories of a dataset, and what its metadata and its card say of them."""

    data: Trajectories  # with policy_id
    behaviours: list[dict[str, Any]]  # a description of each
    ranker: Ranker | None = None  # of the first behaviour that has one
    actions_of: str | None = None  # fingerprint of the ranker whose actions the data hold


def collect_behaviours(
    dataset: DictConfig,
    behaviours: Mapping[str, Mapping[str, Any]],
    checkpoint_of: Mapping[str, Path | None],
    env: Env,
    spec: Mapping[str, Any],
) -> Collected:
    """Collect the trajectories of each behaviour in turn.

    Actions are recorded where all behaviours that have any act through one ranker. It reads the actions of the other
    behaviours from their slates, as it would for an agent that learns from them; their descriptions say so.

    Args:
        dataset: node with trajectories, num_envs, seed, hidden and actions.
        behaviours: nodes of the behaviours, by name.
        checkpoint_of: returns the checkpoint of a behaviour; None for random slates.
        spec: everything that determines the environment (config.build.env_spec).

    Raises:
        UserError: see `behaviour_policy`; or the behaviours lack the requested actions or hidden state.
    """
    parts: list[Trajectories] = []
    told: list[dict[str, Any]] = []
    sources: dict[str, tuple[Policy | Trajectories, Ranker | None]] = {}
    for name, behaviour in behaviours.items():
        checkpoint = checkpoint_of[name]
        if behaviour["policy"] == "replay":
            assert checkpoint is not None
            sources[name] = _replayed(checkpoint, spec, env)
        else:
            sources[name] = behaviour_policy(behaviour, checkpoint, env, spec, name, dataset.seed)
    owners = {n: ranker for n, (_, ranker) in sources.items() if ranker and not behaviours[n]["epsilon"]}
    recorder, why_none = _recorder(dataset.actions, list(owners.values()))
    counts = _shares(dataset.trajectories, [behaviour["share"] for behaviour in behaviours.values()])
    for index, ((name, behaviour), count) in enumerate(zip(behaviours.items(), counts, strict=True)):
        checkpoint, (source, _) = checkpoint_of[name], sources[name]
        if isinstance(source, Trajectories):
            part = source[-count:]
            if len(part) < count:
                note(f"the replay buffer has {len(part):,} trajectories, fewer than the requested {count:,}")
        else:
            with progress(f"collect {name}", count, "trajectories") as show:
                part = collect(
                    source,
                    env,
                    count,
                    generator=stream(dataset.seed, f"users of {name}", env.device),
                    deterministic=not behaviour["sample"],
                    num_envs=min(dataset.num_envs, count),
                    hidden=dataset.hidden,
                    on_progress=show,
                )
        if dataset.hidden and not part.hidden:
            raise UserError(f"dataset.hidden=true: the trajectories of {name} were recorded without hidden state")
        if recorder is None:
            part.actions = None
        elif name not in owners:
            part.actions = with_actions(part.to(env.device), recorder).to(CPU).actions
        part.hidden = part.hidden if dataset.hidden else {}
        part.policy_id = torch.full((len(part),), index, dtype=torch.int16)
        parts.append(part)
        fingerprint = None if checkpoint is None else fingerprint_of(checkpoint)
        about = {key: behaviour[key] for key in ("policy", "sample", "noise", "epsilon")}
        about["actions"] = why_none if recorder is None else "recorded" if name in owners else "read from the slates"
        told.append({"name": name, **about, "checkpoint": fingerprint, "seed": dataset.seed, "trajectories": len(part)})
    columns = [part.columns() for part in parts]
    joined = {name: torch.cat([part[name] for part in columns]) for name in columns[0]}
    ranker = next((ranker for _, ranker in sources.values() if ranker), None)
    return Collected(Trajectories.from_columns(joined), told, ranker, recorder.fingerprint() if recorder else None)


def _recorder(wanted: bool | str, rankers: Sequence[Ranker]) -> tuple[Ranker | None, str]:
    """Return the ranker whose actions are recorded, or none of them and the reason.

    Args:
        wanted: dataset.actions.
        rankers: those of the behaviours whose slates are the slates of their actions.
    """
    if wanted is False:
        return None, "none: dataset.actions=false"
    if len({ranker.fingerprint() for ranker in rankers}) == 1:
        return rankers[0], ""
    why = "the behaviours act through different rankers"
    if not rankers:
        why = "no behaviour has actions that make its slates; random slates, epsilon and ranker=none give none"
    if wanted is True:
        raise UserError(f"dataset.actions=true: {why}")
    note(f"no actions are recorded: {why}")
    return None, f"none: {why.split(';')[0]}"


def behaviour_policy(
    behaviour: Mapping[str, Any],
    checkpoint: Path | None,
    env: Env,
    spec: Mapping[str, Any],
    name: str,
    seed: int,
) -> tuple[Policy, Ranker | None]:
    """Return the policy of a behaviour, and the ranker that it acts through.

    Args:
        checkpoint: None for random slates.
        spec: everything that determines the environment (config.build.env_spec).
        name: name of the behaviour.

    Raises:
        UserError: the checkpoint belongs to another environment; noise needs a policy with latent actions; sampling
            needs a policy with exploration.
    """
    generator = stream(seed, f"behaviour {name}", env.device)
    ranker: Ranker | None = None
    if checkpoint is None:
        policy: Policy = EpsilonOracle(
            epsilon=1.0, num_items=env.num_items, slate_size=env.slate_size, generator=generator
        )
    else:
        loaded = load_policy(checkpoint, env.device)
        check_environment(loaded, spec, checkpoint)
        policy = loaded.policy
        ranker = _ranker_of(policy)
        if isinstance(policy, BeliefPolicy):
            policy = policy.agent.policy(generator)
    if behaviour["sample"] and not (isinstance(policy, BeliefPolicy) and policy.agent.stochastic):
        raise UserError(f"sample=true of the behaviour {name}: it does not explore")
    noise, epsilon = behaviour["noise"], behaviour["epsilon"]
    if noise > 0 and ranker is None:
        raise UserError(f"noise={noise} of the behaviour {name}: it has no latent actions; use epsilon")
    if noise > 0 or epsilon > 0:
        policy = NoisyPolicy(
            policy, noise=noise, epsilon=epsilon, ranker=ranker, num_items=env.num_items, generator=generator
        )
    return policy, ranker


def _ranker_of(policy: Policy) -> Ranker | None:
    """Return the ranker that makes a policy's slates of its actions, if there is one."""
    agent = policy.agent if isinstance(policy, BeliefPolicy) else None
    return agent.ranker if isinstance(agent, LatentAgent) and not agent.REFINES else None


def _replayed(checkpoint: Path, spec: Mapping[str, Any], env: Env) -> tuple[Trajectories, Ranker | None]:
    """Return the trajectories of the replay buffer in a run's last.ckpt, oldest first, and its agent's ranker."""
    state = checkpoints.load(checkpoint, "agent")
    loaded = policy_of(state, checkpoint, env.device)
    check_environment(loaded, spec, checkpoint)
    if "replay" not in state.get("data", {}):
        raise UserError(f"{checkpoint}: no replay buffer in this checkpoint; use the last.ckpt of an online run")
    buffer = ReplayBuffer(state["data"]["replay"]["size"])
    buffer.load_state_dict(state["data"]["replay"], CPU)
    return buffer.trajectories(), _ranker_of(loaded.policy)


def _shares(total: int, shares: Sequence[float]) -> list[int]:
    """Split `total` into whole numbers in these proportions, each at least 1."""
    bounds = [round(total * sum(shares[:i]) / sum(shares)) for i in range(len(shares) + 1)]
    counts = [after - before for before, after in itertools.pairwise(bounds)]
    if min(counts) < 1:
        raise UserError(f"dataset.trajectories={total}: too few to give its behaviours the shares {list(shares)}")
    return counts
