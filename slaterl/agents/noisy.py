"""A policy with added noise, for the behaviour policies of offline datasets."""

from __future__ import annotations

import torch

from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.rankers.base import Ranker
from slaterl.rollout import Decision, Policy


class NoisyPolicy:
    """Disturb the choices of a policy at random.

    Args:
        policy: the policy to disturb.
        noise: probability, for each user in each turn, that N(0, 1) is added to the latent action.
        epsilon: probability, for each slot, that it shows a uniform random item instead.
        ranker: ranker that the policy acts through; if None, noise must be 0.
        num_items: number of items of the environment.
        generator: random stream of the noise.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        noise: float,
        epsilon: float,
        ranker: Ranker | None,
        num_items: int,
        generator: torch.Generator,
    ) -> None:
        self.policy, self.noise, self.epsilon = policy, noise, epsilon
        self.ranker, self.num_items, self.generator = ranker, num_items, generator
        self.sees_hidden = getattr(policy, "sees_hidden", False)

    def reset(self, num_users: int) -> None:
        self.policy.reset(num_users)

    def act(self, observation: Observation | PrivilegedObservation, deterministic: bool) -> Decision:
        """Act with noise even if `deterministic`, because the noise belongs to the behaviour."""
        slate, action, oracle_slots = self.policy.act(observation, deterministic)
        device = self.generator.device
        if self.noise > 0:
            assert self.ranker is not None and action is not None
            disturbed = torch.rand(len(slate), 1, generator=self.generator, device=device) < self.noise
            normal = torch.randn(action.shape, generator=self.generator, device=device)
            # Through the ranker's box, so that the recorded action is the one that made the slate.
            action = self.ranker.to_action(self.ranker.to_latent(action) + normal * disturbed)
            slate = self.ranker.serve(self.ranker.to_latent(action), None if deterministic else self.generator)
        if self.epsilon > 0:
            random = torch.randint(self.num_items, slate.shape, generator=self.generator, device=device)
            replaced = torch.rand(slate.shape, generator=self.generator, device=device) < self.epsilon
            slate = torch.where(replaced, random, slate)
            oracle_slots = None if oracle_slots is None else oracle_slots & ~replaced
        return Decision(slate, action, oracle_slots)
