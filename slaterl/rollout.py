"""The one place where a policy meets an environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slaterl.data.trajectories import Trajectories, smallest_int
from slaterl.envs.observation import Hidden, Observation, PrivilegedObservation
from slaterl.envs.topic_rec import TopicRec


class Decision(NamedTuple):
    """What a policy wants shown to B users."""

    slate: Tensor  # [B, S] int64
    action: Tensor | None = None  # [B, A] in [-1, 1], where the slate came from a ranker
    oracle_slots: Tensor | None = None  # [B, S] bool, slots that the simulator fills with its best items


class Policy(Protocol):
    """Random, oracle or SAC through GeMS: whatever acts.

    One that knows the simulator's hidden state says so by an attribute `sees_hidden = True`, and is given
    PrivilegedObservations; no other ever sees it.
    """

    def reset(self, num_users: int) -> None:
        """Forget everything: B new users come."""

    def act(self, observation: Observation | PrivilegedObservation, deterministic: bool) -> Decision:
        """Choose the next slate of every user, given what each was shown and did last."""


@torch.no_grad()
def rollout(
    policy: Policy,
    env: TopicRec,
    num_users: int,
    *,
    generator: torch.Generator,
    deterministic: bool,
    hidden: bool = False,
) -> Trajectories:
    """Let a policy serve `num_users` new users together, one episode each.

    Args:
        generator: source of the users and their clicks, on the simulator's device.
        deterministic: no exploration.
        hidden: also record what `TopicRec.hidden` tells as each turn begins.

    Returns:
        Trajectories of H + 1 frames, compact, on the simulator's device.
    """
    horizon = env.episode_length
    observation = env.reset(num_users, generator=generator)
    policy.reset(num_users)
    frames = (num_users, horizon + 1, env.slate_size)
    slates = torch.empty(frames, dtype=smallest_int(env.num_items), device=env.device)
    clicks = torch.empty(frames, dtype=torch.uint8, device=env.device)
    slates[:, 0], clicks[:, 0] = observation
    privileged = getattr(policy, "sees_hidden", False)
    actions: list[Tensor] = []
    states: list[Hidden] = []
    for turn in range(1, horizon + 1):
        seen: Observation | PrivilegedObservation = observation
        if hidden or privileged:
            states.append(env.hidden())
        if privileged:
            seen = PrivilegedObservation(*observation, states[-1])
        decision = policy.act(seen, deterministic)
        observation, _, _ = env.step(decision.slate, oracle_slots=decision.oracle_slots)
        slates[:, turn], clicks[:, turn] = observation
        if decision.action is not None:
            actions.append(decision.action)
    columns = zip(*states, strict=True) if hidden else ()
    return Trajectories(
        slates=slates,
        clicks=clicks,
        actions=torch.stack(actions, dim=1) if actions else None,
        hidden={name: torch.stack(turns, 1) for name, turns in zip(Hidden._fields, columns, strict=False)},
    )


def collect(
    policy: Policy,
    env: TopicRec,
    count: int,
    *,
    generator: torch.Generator,
    deterministic: bool,
    num_envs: int,
    hidden: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Trajectories:
    """`count` trajectories, `num_envs` users at a time, gathered on the CPU in columns allocated once.

    Args:
        hidden: see rollout.
        on_progress: called with the number of trajectories done after each round.
    """
    gathered: Trajectories | None = None
    for start in range(0, count, num_envs):
        size = min(num_envs, count - start)
        part = rollout(policy, env, size, generator=generator, deterministic=deterministic, hidden=hidden)
        if gathered is None:
            columns = part.columns().items()
            gathered = Trajectories.from_columns(
                {k: c.new_empty(count, *c.shape[1:], device="cpu") for k, c in columns}
            )
        for name, column in gathered.columns().items():
            column[start : start + size] = part.columns()[name]
        on_progress(start + size)
    assert gathered is not None, "count must be positive"
    return gathered
