"""Policies that do not learn: random slates, the short-term oracle, mixtures of both, and one constant slate."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slaterl.bounds import Fraction
from slaterl.envs.env import Env
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.errors import UserError
from slaterl.rankers.base import Ranker
from slaterl.rollout import Decision


class EpsilonOracle:
    """Fill each slot with a uniform random item with probability epsilon, else with the simulator's best item for it.

    epsilon=1 gives random slates, epsilon=0 the short-term oracle. epsilon=0.5 made the logged data of the paper.

    Args:
        env: environment of the policy, if known; it must have a short-term oracle unless epsilon is 1.

    Raises:
        UserError: `env` has no short-term oracle.
    """

    def __init__(
        self, *, epsilon: Fraction, num_items: int, slate_size: int, generator: torch.Generator, env: Env | None = None
    ) -> None:
        if epsilon < 1 and env is not None and not env.fills_oracle_slots:
            raise UserError(f"agent.epsilon={epsilon}: env={env.name} has no short-term oracle; use agent=random")
        self.epsilon, self.num_items, self.slate_size = epsilon, num_items, slate_size
        self.generator = generator

    def reset(self, num_users: int) -> None:
        pass

    def act(self, observation: Observation | PrivilegedObservation, deterministic: bool) -> Decision:
        """Draw slates. The randomness is the policy itself, not exploration, so `deterministic` has no effect."""
        shape, device = observation.slate.shape, self.generator.device
        slate = torch.randint(self.num_items, shape, generator=self.generator, device=device)
        if self.epsilon == 1:
            return Decision(slate)
        oracle = torch.rand(shape, generator=self.generator, device=device) >= self.epsilon
        return Decision(slate, oracle_slots=oracle)


class ConstantSlate:
    """Show the same slate to every user at every turn. Its return shows how easy an environment is.

    Args:
        slate: item ids; None for the slate that the ranker decodes from latent 0.

    Raises:
        UserError: `slate` is not a list of `slate_size` item ids.
    """

    def __init__(
        self, *, slate: Sequence[int] | None, num_items: int, slate_size: int, ranker: Ranker | None = None
    ) -> None:
        if slate is not None:
            listed = isinstance(slate, list | tuple) and len(slate) == slate_size
            if not listed or not all(isinstance(item, int) and 0 <= item < num_items for item in slate):
                raise UserError(f"agent.slate={slate}: expected {slate_size} item ids from 0 to {num_items - 1}")
        self.slate, self.ranker = slate, ranker

    def reset(self, num_users: int) -> None:
        pass

    def act(self, observation: Observation | PrivilegedObservation, deterministic: bool) -> Decision:
        shown = observation.slate
        if self.slate is not None:
            # filled one by one, because a GPU would wait for a copy of the list
            items = [torch.full((), item, device=shown.device) for item in self.slate]
            return Decision(torch.stack(items).expand(len(shown), -1))
        assert self.ranker is not None
        latent = torch.zeros(1, self.ranker.action_dim, device=shown.device)
        return Decision(self.ranker.rank(latent).expand(len(shown), -1))
