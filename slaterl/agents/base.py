"""What the agents share: acting through a belief and a ranker."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from slaterl.beliefs.gru import GRUBelief
from slaterl.envs.topic_rec import Observation
from slaterl.evaluation import MEASURES
from slaterl.learner import Learner
from slaterl.rankers.base import Ranker
from slaterl.rollout import Decision


class LatentAgent(Learner):
    """An agent that acts in the latent space of a ranker, on the state of a belief.

    A subclass gives `actor_belief`, `action` and `update`; training and acting go through the same modules.

    Attributes:
        ranker: frozen; part of the state dict, so that a checkpoint holds all that acting needs.
        actor_belief: the belief that the policy reads.
    """

    VAL_TERMS: ClassVar = tuple(f"val/{name}" for name in MEASURES)
    actor_belief: GRUBelief

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker.requires_grad_(False).eval()

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        """Belief states [B, H] -> actions [B, A] in [-1, 1]; without a generator the deterministic ones."""
        raise NotImplementedError

    def policy(self, generator: torch.Generator | None = None) -> LatentPolicy:
        """The agent as something that acts; `generator` is its exploration's, None where it never explores."""
        return LatentPolicy(self, generator)

    def random_policy(self, generator: torch.Generator) -> RandomLatentPolicy:
        """What fills the replay buffer before the first update."""
        return RandomLatentPolicy(self.ranker, generator)


class LatentPolicy:
    """Reads each observation into the belief, acts on its state, ranks the action."""

    def __init__(self, agent: LatentAgent, generator: torch.Generator | None) -> None:
        self.agent, self.generator = agent, generator

    def reset(self, num_users: int) -> None:
        self.state = self.agent.actor_belief.initial_state(num_users)

    def act(self, observation: Observation, deterministic: bool) -> Decision:
        agent = self.agent
        self.state = agent.actor_belief.step(observation.slate, observation.clicks, self.state)
        action = agent.action(self.state, None if deterministic else self.generator)
        return Decision(agent.ranker.rank(agent.ranker.to_latent(action)), action)


class RandomLatentPolicy:
    """Uniform actions in the middle half of the ranker's box, whatever it observes."""

    def __init__(self, ranker: Ranker, generator: torch.Generator) -> None:
        self.ranker, self.generator = ranker, generator

    def reset(self, num_users: int) -> None:
        pass

    def act(self, observation: Observation, deterministic: bool) -> Decision:
        action = self.ranker.random_action(len(observation.slate), self.generator)
        return Decision(self.ranker.rank(self.ranker.to_latent(action)), action)
