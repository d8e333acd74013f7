"""Policies that do not learn: random slates, the short-term oracle, and mixtures of the two."""

from __future__ import annotations

import torch

from slaterl.envs.topic_rec import Observation
from slaterl.errors import check_range
from slaterl.rollout import Decision


class EpsilonOracle:
    """Each slot is a uniform random item with probability epsilon, else the item that the simulator scores best there.

    epsilon 1 are random slates, epsilon 0 is the short-term oracle, 0.5 made the logged data of the paper.
    """

    def __init__(self, *, epsilon: float, num_items: int, slate_size: int, generator: torch.Generator) -> None:
        check_range(0, 1, **{"epsilon": epsilon})
        self.epsilon, self.num_items, self.slate_size = epsilon, num_items, slate_size
        self.generator = generator

    def reset(self, num_users: int) -> None:
        pass

    def act(self, observation: Observation, deterministic: bool) -> Decision:
        """The same distribution whether deterministic or not: the mixture is the policy, not its exploration."""
        shape, device = observation.slate.shape, self.generator.device
        slate = torch.randint(self.num_items, shape, generator=self.generator, device=device)
        if self.epsilon == 1:
            return Decision(slate)
        oracle = torch.rand(shape, generator=self.generator, device=device) >= self.epsilon
        return Decision(slate, oracle_slots=oracle)
