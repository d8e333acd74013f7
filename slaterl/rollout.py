"""Rollout: the one place where a policy meets an environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from slaterl.data.trajectories import Trajectories, smallest_int
from slaterl.envs.env import Env
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.errors import UserError
from slaterl.runtime import exact_products


class Decision(NamedTuple):
    """The slates that a policy shows to B users."""

    slate: Tensor  # [B, S] int64
    action: Tensor | None = None  # [B, A] in [-1, 1], if the slate came from a ranker
    oracle_slots: Tensor | None = None  # [B, S] bool, slots that the environment fills with its best items


class Policy(Protocol):
    """Anything that acts: random slates, an oracle, SAC through GeMS.

    A policy that knows the simulator's hidden state has an attribute `sees_hidden = True` and gets
    PrivilegedObservations. No other policy ever sees the hidden state.
    """

    def reset(self, num_users: int) -> None:
        """Forget the previous users; B new users arrive."""

    def act(self, observation: Observation | PrivilegedObservation, deterministic: bool) -> Decision:
        """Choose each user's next slate, given the last slate and its clicks."""


@torch.no_grad()
def rollout(
    policy: Policy,
    env: Env,
    num_users: int,
    *,
    generator: torch.Generator,
    deterministic: bool,
    hidden: bool = False,
) -> Trajectories:
    """Let a policy serve `num_users` new users together, one episode each.

    Args:
        generator: source of the users and their clicks, on the environment's device.
        deterministic: whether to act without exploration.
        hidden: whether to also record the columns of `Env.hidden` as each turn begins.

    Returns:
        Trajectories of H + 1 frames, compact, on the environment's device. They hold rewards only if the reward is
        not the number of clicks. Where users can leave early they hold lengths, and zeros after a user left.

    Raises:
        UserError: the policy or `hidden` needs an ability that the environment lacks; or an episode has another length
            than `env.episode_length`; or the environment does not say who left.
    """
    horizon = env.episode_length
    privileged = getattr(policy, "sees_hidden", False)
    if (hidden or privileged) and env.hidden_columns is None:
        needed = "dataset.hidden=true, belief=none and agents that see the simulator need it"
        raise UserError(f"env={env.name}: this environment does not reveal its users' hidden state; {needed}")
    with exact_products():
        observation = env.reset(num_users, generator=generator)
    policy.reset(num_users)
    frames = (num_users, horizon + 1, env.slate_size)
    slates = torch.empty(frames, dtype=smallest_int(env.num_items), device=env.device)
    clicks = torch.empty(frames, dtype=torch.uint8, device=env.device)
    shown, clicked = slates.unbind(1), clicks.unbind(1)
    shown[0].copy_(observation.slate)
    clicked[0].copy_(observation.clicks)
    rewards = None if env.reward_is_clicks else torch.empty(num_users, horizon, device=env.device)
    actions: list[Tensor] = []
    states: list[Any] = []
    present = torch.ones(num_users, dtype=torch.bool, device=env.device)
    lengths = torch.zeros(num_users, dtype=torch.int32, device=env.device)
    for turn in range(1, horizon + 1):
        seen: Observation | PrivilegedObservation = observation
        if hidden or privileged:
            states.append(env.hidden())
        if privileged:
            seen = PrivilegedObservation(*observation, states[-1])
        decision = policy.act(seen, deterministic)
        if decision.oracle_slots is not None and not env.fills_oracle_slots:
            raise UserError(
                f"env={env.name}: this environment has no short-term oracle; use random slates "
                "(agent=random, logged_data.epsilon=1)"
            )
        with exact_products():
            observation, reward, ended = env.step(decision.slate, oracle_slots=decision.oracle_slots)
        _check_end(env, ended, turn)
        if isinstance(ended, Tensor):
            lengths += present
            present = present & ~ended
        shown[turn].copy_(observation.slate)
        clicked[turn].copy_(observation.clicks)
        if rewards is not None:
            rewards[:, turn - 1] = reward
        if decision.action is not None:
            actions.append(decision.action)
    columns = zip(env.hidden_columns or (), zip(*states, strict=True), strict=True) if hidden else ()
    data = Trajectories(
        slates=slates,
        clicks=clicks,
        actions=torch.stack(actions, dim=1) if actions else None,
        hidden={name: torch.stack(turns, 1) for name, turns in columns},
        reward=rewards,
        lengths=lengths if env.ends_early else None,
    )
    return data.blanked()


def _check_end(env: Env, ended: bool | Tensor, turn: int) -> None:
    """Raise UserError if an environment says in another way than its class does that episodes ended."""
    if env.ends_early != isinstance(ended, Tensor):
        expected = "a tensor [B] of who left" if env.ends_early else "True or False"
        raise UserError(f"env={env.name}: ends_early={env.ends_early}, so the third value of step must be {expected}")
    if not isinstance(ended, Tensor) and ended != (turn == env.episode_length):
        raise UserError(
            f"env={env.name}: an episode {'ended' if ended else 'did not end'} at turn {turn}; all must have "
            f"env.episode_length={env.episode_length} turns"
        )


def collect(
    policy: Policy,
    env: Env,
    count: int,
    *,
    generator: torch.Generator,
    deterministic: bool,
    num_envs: int,
    hidden: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Trajectories:
    """Collect `count` trajectories, `num_envs` users at a time, on the CPU in columns allocated once.

    Args:
        hidden: see rollout.
        on_progress: called after each round with the number of trajectories done.
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
