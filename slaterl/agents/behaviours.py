"""The behaviour policies of offline datasets: what they are, and the trajectories that they collect."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from slaterl.agents.base import BeliefPolicy, LatentAgent
from slaterl.agents.heuristics import EpsilonOracle
from slaterl.agents.loading import check_environment, load_policy, policy_of
from slaterl.agents.noisy import NoisyPolicy
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


def collect_behaviours(
    dataset: DictConfig,
    behaviours: Mapping[str, Mapping[str, Any]],
    checkpoint_of: Mapping[str, Path | None],
    env: Env,
    spec: Mapping[str, Any],
) -> tuple[Trajectories, list[dict[str, Any]], Ranker | None]:
    """Collect the trajectories of each behaviour in turn.

    Args:
        dataset: node with trajectories, num_envs, seed, hidden and actions.
        behaviours: nodes of the behaviours, by name.
        checkpoint_of: returns the checkpoint of a behaviour; None for random slates.
        spec: everything that determines the environment (config.build.env_spec).

    Returns:
        the trajectories with policy_id, one description per behaviour, and the ranker of the first that has one.

    Raises:
        UserError: see `behaviour_policy`; or a behaviour lacks the requested actions or hidden state.
    """
    parts: list[Trajectories] = []
    told: list[dict[str, Any]] = []
    ranker: Ranker | None = None
    counts = _shares(dataset.trajectories, [behaviour["share"] for behaviour in behaviours.values()])
    for index, ((name, behaviour), count) in enumerate(zip(behaviours.items(), counts, strict=True)):
        checkpoint = checkpoint_of[name]
        if behaviour["policy"] == "replay":
            assert checkpoint is not None
            part = _replayed(checkpoint, spec, count)
            if len(part) < count:
                note(f"the replay buffer has {len(part):,} trajectories, fewer than the requested {count:,}")
        else:
            policy, own = behaviour_policy(behaviour, checkpoint, env, spec, name, dataset.seed)
            if dataset.actions and not _same_ranker(ranker, own):
                raise UserError(
                    f"dataset.actions=true: {name} and the behaviours before it act through different rankers"
                )
            ranker = ranker or own
            with progress(f"collect {name}", count, "trajectories") as show:
                part = collect(
                    policy,
                    env,
                    count,
                    generator=stream(dataset.seed, f"users of {name}", env.device),
                    deterministic=not behaviour["sample"],
                    num_envs=min(dataset.num_envs, count),
                    hidden=dataset.hidden,
                    on_progress=show,
                )
        if dataset.actions and part.actions is None:
            raise UserError(f"dataset.actions=true: the behaviour {name} has no ranker, so it has no actions to record")
        if dataset.hidden and not part.hidden:
            raise UserError(f"dataset.hidden=true: the trajectories of {name} were recorded without hidden state")
        part.actions = part.actions if dataset.actions else None
        part.hidden = part.hidden if dataset.hidden else {}
        part.policy_id = torch.full((len(part),), index, dtype=torch.int16)
        parts.append(part)
        fingerprint = None if checkpoint is None else fingerprint_of(checkpoint)
        about = {key: behaviour[key] for key in ("policy", "sample", "noise", "epsilon")}
        told.append({"name": name, **about, "checkpoint": fingerprint, "seed": dataset.seed, "trajectories": len(part)})
    columns = [part.columns() for part in parts]
    joined = {name: torch.cat([part[name] for part in columns]) for name in columns[0]}
    return Trajectories.from_columns(joined), told, ranker


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
        if isinstance(policy, BeliefPolicy):
            policy = policy.agent.policy(generator)
            if isinstance(policy.agent, LatentAgent) and not policy.agent.REFINES:
                ranker = policy.agent.ranker
    if behaviour["sample"] and not (isinstance(policy, BeliefPolicy) and policy.agent.explores):
        raise UserError(f"sample=true of the behaviour {name}: it does not explore")
    noise, epsilon = behaviour["noise"], behaviour["epsilon"]
    if noise > 0 and ranker is None:
        raise UserError(f"noise={noise} of the behaviour {name}: it has no latent actions; use epsilon")
    if noise > 0 or epsilon > 0:
        policy = NoisyPolicy(
            policy, noise=noise, epsilon=epsilon, ranker=ranker, num_items=env.num_items, generator=generator
        )
    return policy, ranker


def _replayed(checkpoint: Path, spec: Mapping[str, Any], count: int) -> Trajectories:
    """Return the newest `count` trajectories of the replay buffer in a run's last.ckpt, or all if it has fewer."""
    state = checkpoints.load(checkpoint, "agent")
    check_environment(policy_of(state, checkpoint), spec, checkpoint)
    if "replay" not in state.get("data", {}):
        raise UserError(f"{checkpoint}: no replay buffer in this checkpoint; use the last.ckpt of an online run")
    buffer = ReplayBuffer(state["data"]["replay"]["size"])
    buffer.load_state_dict(state["data"]["replay"], torch.device("cpu"))
    return buffer.trajectories()[-count:]


def _same_ranker(one: Ranker | None, other: Ranker | None) -> bool:
    """Whether the actions of two rankers mean the same; a missing ranker agrees with every other."""
    if one is None or other is None:
        return True
    a, b = one.state_dict(), other.state_dict()
    return type(one) is type(other) and all(torch.equal(a[key], b[key]) for key in a)


def _shares(total: int, shares: Sequence[float]) -> list[int]:
    """Split `total` into whole numbers in these proportions, each at least 1."""
    bounds = [round(total * sum(shares[:i]) / sum(shares)) for i in range(len(shares) + 1)]
    counts = [after - before for before, after in itertools.pairwise(bounds)]
    if min(counts) < 1:
        raise UserError(f"dataset.trajectories={total}: too few to give its behaviours the shares {list(shares)}")
    return counts
