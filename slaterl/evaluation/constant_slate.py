"""Search for the best constant slate: one slate that is shown to every user at every turn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slaterl.envs.env import Env
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.rollout import Decision, rollout
from slaterl.seeds import stream

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


def best_constant_slate(
    env: Env, *, users: int, rounds: int, seed: int, on_progress: Callable[[int], None] = lambda done: None
) -> Tensor:
    """Climb from random slates to the one with the highest mean return. Returns item ids [S].

    A round serves new users, each candidate its own, in one rollout. The best candidates are kept and changed for the
    next round. The users come from a stream of their own, so none of them is a test user.

    The result is a lower bound: a longer search may find a better slate.

    Args:
        users: number of users for each candidate in a round.
        on_progress: called after each round with the number of rounds done.
    """
    generator = stream(seed, "constant slate", env.device)
    slates = torch.randint(env.num_items, (CANDIDATES, env.slate_size), generator=generator, device=env.device)
    for done in range(rounds):
        parents = slates[mean_returns(env, slates, users, generator).topk(PARENTS).indices]
        slates = torch.cat([parents, _children(parents, CANDIDATES - PARENTS, env.num_items, generator)])
        on_progress(done + 1)
    parents = slates[:PARENTS]
    users = users * CANDIDATES // PARENTS  # the last parents are close: a whole round of users decides between them
    return parents[mean_returns(env, parents, users, generator).argmax()]


def mean_returns(env: Env, slates: Tensor, users: int, generator: torch.Generator) -> Tensor:
    """Show C slates [C, S] to `users` new users each. Returns the mean returns [C]."""
    policy = SlatePerGroup(slates, users)
    served = rollout(policy, env, len(policy.shown), generator=generator, deterministic=True)
    return served.returns.view(len(slates), users).mean(1)


def _children(parents: Tensor, count: int, num_items: int, generator: torch.Generator) -> Tensor:
    """Mix the slots of two parents [P, S] each, and replace the item of one slot. Returns [count, S]."""

    def draw(below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=generator, device=parents.device)

    size = parents.shape[1]
    first, second = parents[draw(len(parents), 2, count)]
    children = torch.where(draw(2, count, size).bool(), first, second)
    return children.scatter(1, draw(size, count, 1), draw(num_items, count, 1))
