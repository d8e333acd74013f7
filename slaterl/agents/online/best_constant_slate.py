"""An evolutionary search for the best constant slate: one slate that is shown to every user at every turn.

A generation of slates serves new users. The best of them become parents, and their children are mixtures of two parents
with one item replaced. This is a (mu + lambda) evolution strategy, see Beyer and Schwefel, "Evolution strategies: a
comprehensive introduction", Natural Computing 2002.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from slaterl.agents.base import BeliefPolicy, ItemAgent
from slaterl.agents.losses import valid_turns
from slaterl.beliefs.base import Belief
from slaterl.bounds import Count, Positive
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.errors import UserError
from slaterl.rollout import Decision


class BestConstantSlate(ItemAgent):
    """Show every user the slate with the highest mean return so far. While it learns, each user tests a candidate.

    A user of a candidate is a step, so the search costs users as the training of any other agent does. A generation
    ends after `users` steps for each candidate. Parents keep the returns of all users that they have served.

    The value of a candidate is (sum of its returns + doubt * m) / (number of its users + doubt). The mean return over
    the users of all candidates is m. Without the doubt, a child with two lucky users would be the best.

    Args:
        num_items, slate_size: sizes of the environment.
        generator: draws the first candidates and the children.
        candidates: C, number of slates in a generation.
        parents: number of slates that survive a generation.
        users: number of users for each candidate in a generation.
        doubt: how many users the mean of all candidates counts for.

    Raises:
        UserError: all candidates are parents.

    Attributes:
        slates: [C, S] item ids of this generation's candidates, its parents first.
        sums, counts: [C] sum of returns and number of users of each candidate.
    """

    TERMS: ClassVar = ("value/best", "search/generation")
    ON_POLICY: ClassVar = True

    slates: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        *,
        num_items: int,
        slate_size: int,
        generator: torch.Generator,
        candidates: Count,
        parents: Count,
        users: Count,
        doubt: Positive,
    ) -> None:
        if parents >= candidates:
            raise UserError(f"agent.parents={parents}: must be less than agent.candidates={candidates}")
        super().__init__(num_items, slate_size)
        self.parents, self.users, self.doubt = parents, users, doubt
        self.generators["children"] = generator
        first = torch.randint(num_items, (candidates, slate_size), generator=generator, device=generator.device)
        self.register_buffer("slates", first)
        self.register_buffer("sums", torch.zeros(candidates))
        self.register_buffer("counts", torch.zeros(candidates))
        self._belief = _ReadsNothing()

    @property
    def acting_belief(self) -> Belief:
        return self._belief

    def policy(self, generator: torch.Generator | None = None) -> BeliefPolicy:
        return _OneSlateEach(self, generator)

    def values(self) -> Tensor:
        """Return the value of each candidate, [C]."""
        mean = self.sums.sum() / self.counts.sum().clamp(min=1)
        return (self.sums + self.doubt * mean) / (self.counts + self.doubt)

    def best(self) -> Tensor:
        """Return the item ids of the best slate so far, [1, S]."""
        return self.slates[self.values().topk(1).indices]

    def decide(
        self, state: Tensor, observation: Observation | PrivilegedObservation, generator: torch.Generator | None
    ) -> Decision:
        users = state.shape[0]
        return Decision(self.best().expand(users, -1) if generator is None else self.drawn(users, generator))

    def drawn(self, users: int, generator: torch.Generator) -> Tensor:
        """Return a candidate for each of B users, [B, S]: those with the fewest users first, in random order."""
        ties = torch.rand(len(self.counts), generator=generator, device=self.counts.device)
        order = (self.counts + ties).argsort()
        return self.slates[order[torch.arange(users, device=order.device) % len(order)]]

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Add the returns of B users to their candidates. The last update of a generation makes the next one."""
        shown, mask = batch.slates[:, 1].long(), valid_turns(batch)  # [B, S], [B, H]
        returns = (batch.rewards if mask is None else batch.rewards.where(mask, 0.0)).sum(1, keepdim=True)
        tested = (shown.unsqueeze(1) == self.slates).all(2)  # [B, C]
        self.sums += returns.where(tested, 0.0).sum(0)
        self.counts += tested.sum(0)
        values, length = self.values(), self.users * len(self.slates)
        generation, before = self.step // length, max(0, self.step - self.steps_in(batch)) // length
        if generation > before:
            self._replace(values.topk(self.parents).indices)
        return {"value/best": values.amax(), "search/generation": values.new_full((), generation)}

    def _replace(self, best: Tensor) -> None:
        """Make the next generation of the best candidates, given by their places, and their children."""
        chosen = self.slates[best]
        children = children_of(chosen, len(self.slates) - len(best), self.num_items, self.generators["children"])
        self.slates.copy_(torch.cat([chosen, children]))
        for column in (self.sums, self.counts):
            column.copy_(torch.cat([column[best], column.new_zeros(len(children))]))


def children_of(parents: Tensor, count: int, num_items: int, generator: torch.Generator) -> Tensor:
    """Mix the slots of two parents [P, S] each, and replace the item of one slot. Returns [count, S]."""

    def draw(below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=generator, device=parents.device)

    size = parents.shape[1]
    first, second = parents[draw(len(parents), 2, count)]
    children = torch.where(draw(2, count, size).bool(), first, second)
    return children.scatter(1, draw(size, count, 1), draw(num_items, count, 1))


class _ReadsNothing(Belief):
    """A state [B, 1] of zeros, whatever a user does."""

    state_dim = 1
    _zeros: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_zeros", torch.zeros(1), persistent=False)

    def initial_state(self, num_users: int) -> Tensor:
        return self._zeros.expand(num_users, -1)

    def step(self, observation: Observation | PrivilegedObservation, memory: Tensor) -> Tensor:
        return memory


class _OneSlateEach(BeliefPolicy):
    """With exploration, a user sees the same candidate at every turn."""

    def reset(self, num_users: int) -> None:
        super().reset(num_users)
        self.slates: Tensor | None = None

    def act(self, observation: Observation | PrivilegedObservation, deterministic: bool) -> Decision:
        if self.slates is None:
            self.slates = super().act(observation, deterministic).slate
        return Decision(self.slates)
