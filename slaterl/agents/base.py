"""Base classes of all agents: acting on the state of a belief, through a ranker or without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.beliefs.base import Belief, JoinedBeliefs
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.networks import Critics
from slaterl.rankers.base import Ranker
from slaterl.rollout import Decision, Policy
from slaterl.training.learner import Learner


class Agent(Learner):
    """An agent that acts on the state of a belief. Training and acting use the same modules.

    A subclass gives `acting_belief`, `decide`, `random_policy` and `update`.

    Attributes:
        LEARNS_FROM: the simulator or a dataset.
        ON_POLICY: whether an update takes the newest trajectories, each once, instead of samples of the replay buffer.
        SEES_SIMULATOR: whether the agent itself, not its belief, reads the simulator's hidden state.
        MIN_TURNS: shortest episode that the agent can learn from, in turns.
        KEEPS_PLANS: whether its policy keeps more between turns than its belief, so that `decide` acts otherwise.
        CREDITS_CLICKS: whether it learns from clicks on items, so that the reward must be the number of clicks.
        explores: whether the agent's own choices differ with a generator.
        stochastic: whether acting with a generator differs from acting without one, be it by a ranker's temperature.
        acting_belief: the belief that the policy reads.
    """

    LEARNS_FROM: ClassVar[Literal["simulator", "dataset"]] = "simulator"
    ON_POLICY: ClassVar[bool] = False
    SEES_SIMULATOR: ClassVar[bool] = False
    MIN_TURNS: ClassVar[int] = 1
    KEEPS_PLANS: ClassVar[bool] = False
    CREDITS_CLICKS: ClassVar[bool] = False
    explores: bool = True

    @property
    def acting_belief(self) -> Belief | JoinedBeliefs:
        raise NotImplementedError

    @property
    def stochastic(self) -> bool:
        return self.explores

    @property
    def sees_hidden(self) -> bool:
        """Whether acting needs observations with the simulator's hidden state."""
        return self.SEES_SIMULATOR or self.acting_belief.sees_hidden

    def decide(
        self, state: Tensor, observation: Observation | PrivilegedObservation, generator: torch.Generator | None
    ) -> Decision:
        """Choose the slates of B users with states [B, state]. `generator` drives exploration; None acts greedily."""
        raise NotImplementedError

    def slot_chances(self, state: Tensor, slates: Tensor) -> Tensor | None:
        """Return the exact probability [B, S] of each item of slates [B, S] when exploring, if slots are independent.

        None if the agent does not know it.
        """
        return None

    def policy(self, generator: torch.Generator | None = None) -> BeliefPolicy:
        """Wrap the agent as a policy. `generator` drives exploration; None acts greedily."""
        return BeliefPolicy(self, generator)

    def random_policy(self, generator: torch.Generator) -> Policy:
        """Return the policy that fills the replay buffer before the first update."""
        raise NotImplementedError

    def prepare(self, data: Trajectories) -> Trajectories:
        """Hook of agents that learn from a dataset: select or measure it once, before training."""
        return data

    def preparation(self) -> dict[str, Tensor]:
        """Return what `prepare` has found and the state dict does not hold, for `prepare_again`."""
        return {}

    def prepare_again(self, data: Trajectories, found: Mapping[str, Tensor]) -> Trajectories:
        """Return what `prepare` returned in the run that a resumed run continues. The agent has its state already.

        Args:
            found: what `preparation` returned there.
        """
        state = {name: value.clone() for name, value in self.state_dict().items()}
        data = self.prepare(data)
        self.load_state_dict(state)
        return data

    def steps_in(self, batch: object) -> int:
        """Count an update's steps: on policy, the trajectories of the batch; otherwise one step."""
        return len(batch) if self.ON_POLICY else 1  # type: ignore[arg-type]


class BeliefPolicy:
    """A policy that reads each observation into the agent's belief and lets the agent decide on its state."""

    def __init__(self, agent: Agent, generator: torch.Generator | None) -> None:
        self.agent, self.generator = agent, generator
        self.sees_hidden = agent.sees_hidden

    def reset(self, num_users: int) -> None:
        self.memory = self.agent.acting_belief.initial_state(num_users)

    def read(self, observation: Observation | PrivilegedObservation) -> None:
        """Read an observation into memory and state."""
        belief = self.agent.acting_belief
        self.memory = belief.step(observation, self.memory)
        self.state = belief.state_of(self.memory)

    def act(self, observation: Observation | PrivilegedObservation, deterministic: bool) -> Decision:
        self.read(observation)
        return self.agent.decide(self.state, observation, None if deterministic else self.generator)


class LatentAgent(Agent):
    """An agent that acts in the latent space of a ranker. A subclass gives `actor_belief`, `action` and `update`.

    Attributes:
        ranker: frozen, and part of the state dict, so that a checkpoint is all that acting needs.
        REFINES: whether the agent changes the slates that the ranker makes from its actions.
    """

    REFINES: ClassVar[bool] = False

    actor_belief: Belief

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker.requires_grad_(False).eval()

    @property
    def acting_belief(self) -> Belief | JoinedBeliefs:
        return self.actor_belief

    @property
    def stochastic(self) -> bool:
        return self.explores or self.ranker.temperature > 0

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        """Map belief states [..., state] to actions [..., A] in [-1, 1]. Without a generator, act deterministically."""
        raise NotImplementedError

    def decide(
        self, state: Tensor, observation: Observation | PrivilegedObservation, generator: torch.Generator | None
    ) -> Decision:
        return self.decided(self.action(state, generator), generator)

    def decided(self, action: Tensor, generator: torch.Generator | None) -> Decision:
        """Return the slates of actions [B, A] in [-1, 1], see Ranker.serve."""
        return Decision(self.ranker.serve(self.ranker.to_latent(action), generator), action)

    def q_values(self, critics: Critics, state: Tensor, action: Tensor) -> Tensor:
        """Value actions [..., A] in [-1, 1] at belief states [..., state]: [num_critics, ...].

        The critics read actions in the ranker's latent units.
        """
        return critics(state, self.ranker.to_latent(action))

    def descend(self, **losses: Tensor) -> None:
        """Take one step of each named optimiser down the gradient of its loss.

        All gradients are taken at the same parameters, in one backward pass. Optimisers without a loss rest.
        """
        for optimizer in self.optim.values():
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(tuple(losses.values()))
        for name in losses:
            self.optim[name].step()

    def random_policy(self, generator: torch.Generator) -> Policy:
        return RandomLatentPolicy(self.ranker, generator)


class RandomLatentPolicy:
    """A policy of uniform actions in the middle half of the ranker's box, whatever it observes."""

    def __init__(self, ranker: Ranker, generator: torch.Generator) -> None:
        self.ranker, self.generator = ranker, generator

    def reset(self, num_users: int) -> None:
        pass

    def act(self, observation: Observation | PrivilegedObservation, deterministic: bool) -> Decision:
        action = self.ranker.random_action(len(observation.slate), self.generator)
        return Decision(self.ranker.serve(self.ranker.to_latent(action), self.generator), action)


class ItemAgent(Agent):
    """An agent that chooses the items of a slate itself. A subclass gives `acting_belief`, `decide` and `update`."""

    def __init__(self, num_items: int, slate_size: int) -> None:
        super().__init__()
        self.num_items, self.slate_size = num_items, slate_size

    def random_policy(self, generator: torch.Generator) -> EpsilonOracle:
        return EpsilonOracle(epsilon=1.0, num_items=self.num_items, slate_size=self.slate_size, generator=generator)
