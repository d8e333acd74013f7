"""The best constant slate as a reference next to other policies: a search by the agent of this name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from slaterl.agents.heuristics import ConstantSlate
from slaterl.agents.online.best_constant_slate import BestConstantSlate
from slaterl.agents.online.collecting import OnlineData
from slaterl.console import note, progress
from slaterl.envs.env import Env
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.evaluation.evaluate import Evaluation, evaluate
from slaterl.rollout import Decision, rollout
from slaterl.seeds import stream

ROUNDS = 60  # at scale=demo 14 to 25 s on one core
CANDIDATES = 256  # slates tried in a round
PARENTS = 16  # the best of a round, from which the next round is made


class SlatePerGroup:
    """Show each of C slates [C, S] to its own group of `users` users, at every turn."""

    def __init__(self, slates: Tensor, users: int) -> None:
        self.shown = slates.repeat_interleave(users, 0)

    def reset(self, num_users: int) -> None:
        pass

    def act(self, observation: Observation | PrivilegedObservation, deterministic: bool) -> Decision:
        return Decision(self.shown)


def tested_constant_slate(env: Env, users: int, test_users: int, seed: int) -> tuple[list[int], Evaluation]:
    """Search for the best constant slate with progress for the user, and test it. Returns its item ids and its test.

    Args:
        users: number of users for each candidate in a round.
    """
    with progress("search for the best constant slate", ROUNDS, "rounds") as show:
        slate = best_constant_slate(env, users=users, rounds=ROUNDS, seed=seed, on_progress=show).tolist()
    policy = ConstantSlate(slate=slate, num_items=env.num_items, slate_size=env.slate_size)
    return slate, evaluate(policy, env, test_users, seed, "test")


def tell_without_search(users: int | None, result: Iterable[str]) -> None:
    """Tell users who ask for the search that a finished run has none. The search is no part of a run's name.

    Args:
        users: the setting constant_slate_users.
        result: entries of the run's result.
    """
    if users is not None and not any(entry.startswith("best_constant_") for entry in result):
        note("constant_slate_users: this run was made without the search, and a finished run is not made again")


def best_constant_slate(
    env: Env, *, users: int, rounds: int, seed: int, on_progress: Callable[[int], None] = lambda done: None
) -> Tensor:
    """Search from random slates for the one with the highest mean return. Returns item ids [S].

    A round is a generation of agent=best_constant_slate, whose users are served together. A last round lets the
    parents meet as many users again. The users come from a stream of their own, so none of them is a test user.

    The result is a lower bound: a longer search may find a better slate.

    Args:
        users: number of users for each candidate in a round.
        on_progress: called after each round with the number of rounds done.
    """
    generator = stream(seed, "constant slate", env.device)
    agent = BestConstantSlate(
        num_items=env.num_items,
        slate_size=env.slate_size,
        generator=generator,
        candidates=CANDIDATES,
        parents=PARENTS,
        users=users,
        doubt=users,
    ).to(env.device)
    size = CANDIDATES * users
    sizes: dict[str, Any] = {
        "num_envs": size,
        "batch_size": size,
        "capacity": size,
        "max_steps": rounds * size,
        "random_steps": 0,
    }
    data = OnlineData(env, agent, **sizes, users=generator, exploration=generator, batches=generator)
    for done, batch in enumerate(data.train_dataloader(), start=1):
        agent.step += agent.steps_in(batch)
        agent.update(batch)
        on_progress(done)
    parents = agent.slates[:PARENTS]
    return parents[mean_returns(env, parents, size // PARENTS, generator).argmax()]


def mean_returns(env: Env, slates: Tensor, users: int, generator: torch.Generator) -> Tensor:
    """Show C slates [C, S] to `users` new users each. Returns the mean returns [C]."""
    policy = SlatePerGroup(slates, users)
    served = rollout(policy, env, len(policy.shown), generator=generator, deterministic=True)
    return served.returns.view(len(slates), users).mean(1)
