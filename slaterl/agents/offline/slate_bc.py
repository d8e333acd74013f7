"""Behaviour cloning of slates: a softmax over the items for each slot, without a ranker."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from slaterl.agents.base import ItemAgent
from slaterl.agents.losses import at, draw_turns, mean, valid_turns
from slaterl.agents.offline.base import MakeBelief, gradient_norm, of_frames
from slaterl.beliefs.base import Belief, states_of
from slaterl.bounds import Count, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.layers import in_blocks
from slaterl.networks import mlp, with_gumbel_noise
from slaterl.rankers.base import best_of
from slaterl.rollout import Decision
from slaterl.runtime import exact_products


class SlateBC(ItemAgent):
    """Clone the slates: the loss is the mean of -log softmax(scores(s))[shown item] over the slots.

    score(s, slot, i) = <query(s, slot), e_i> + bias(slot, i), with learned embeddings e of the items. The biases start
    at the log-frequencies of the data and the embeddings at zero. So at first the policy shows each item as often as
    the data, whatever the state, and learns from there what depends on the state.

    Args:
        num_items, slate_size: sizes of the environment.
        belief: makes the actor's belief.
        generator: random stream of the updates.
        unique: show slates without repeats; each slot then chooses among the items that are left.
        item_dim: width of queries and item embeddings.
        turns: turns of a batch in an update, drawn again each time. Memory is B * turns * S * N numbers.
        pi_lr: Adam's learning rate of policy and belief; pi_hidden: widths of the hidden layers.
    """

    LEARNS_FROM: ClassVar = "dataset"
    TERMS: ClassVar = ("loss/actor", "policy/same_item", "grad/actor")

    def __init__(
        self, *, num_items: int, slate_size: int, belief: MakeBelief, generator: torch.Generator, unique: bool,
        item_dim: Count, turns: Count, pi_lr: Positive, pi_hidden: Widths,
    ) -> None:  # fmt: skip
        super().__init__(num_items, slate_size)
        self.generators["update"] = generator
        self.unique, self.turns = unique, turns
        self.actor_belief = of_frames(belief)
        self.actor = mlp(self.actor_belief.state_dim, pi_hidden, slate_size * item_dim)
        self.item_embeddings = nn.Parameter(torch.zeros(num_items, item_dim))
        self.slot_bias = nn.Parameter(torch.zeros(slate_size, num_items))
        self.add_optimizer("actor", self.actor, self.actor_belief, self.item_embeddings, self.slot_bias, lr=pi_lr)

    @property
    def acting_belief(self) -> Belief:
        return self.actor_belief

    @torch.no_grad()
    def prepare(self, data: Trajectories) -> Trajectories:
        """Start the biases at the log-frequency of each item in each slot, with one random slate added to the data."""
        shown = data.slates[:, 1:].flatten(0, 1).T.long()  # [S, N * H]
        there = data.mask.flatten().float()
        counts = torch.zeros_like(self.slot_bias).scatter_add_(1, shown, there.repeat(len(shown), 1))
        self.slot_bias.copy_(((counts + 1 / self.num_items) / (there.sum(dtype=torch.float64) + 1)).log())
        return data

    def scores(self, queries: Tensor) -> Tensor:
        """Score all items for queries [..., S * item_dim]: [..., S, N]."""
        return queries.unflatten(-1, (self.slate_size, -1)) @ self.item_embeddings.T + self.slot_bias

    def decide(
        self, state: Tensor, observation: Observation | PrivilegedObservation, generator: torch.Generator | None
    ) -> Decision:
        # in blocks of users, because the scores of all items can be large
        blocks = in_blocks(self.actor(state), self.slot_bias.numel())
        return Decision(torch.cat([self._choose(queries, generator) for queries in blocks]))

    def slot_chances(self, state: Tensor, slates: Tensor) -> Tensor | None:
        if self.unique:
            return None
        scored = self.slot_bias.numel()
        blocks = zip(in_blocks(self.actor(state), scored), in_blocks(slates.unsqueeze(2), scored), strict=True)
        return torch.cat([self.scores(queries).softmax(2).gather(2, shown) for queries, shown in blocks]).squeeze(2)

    @exact_products()
    def _choose(self, queries: Tensor, generator: torch.Generator | None) -> Tensor:
        scores = self.scores(queries)
        if generator is not None:
            scores = with_gumbel_noise(scores, generator)
        return best_of(scores, self.unique)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of policy and belief on some turns of B whole trajectories."""
        generator = self.generators["update"]
        turns, weight = draw_turns(self.turns, batch.slates.shape[1] - 1, valid_turns(batch), generator)
        (state,) = states_of([self.actor_belief], batch)
        scores = self.scores(at(self.actor(state), turns))  # [B, turns, S, N]
        shown = at(batch.slates[:, 1:], turns).long()
        if weight is None:
            loss = cross_entropy(scores.flatten(0, 2), shown.flatten())
        else:
            losses = cross_entropy(scores.flatten(0, 2), shown.flatten(), reduction="none").view_as(shown)
            loss = mean(losses, weight, of_vectors=True)
        self.minimise("actor", loss)
        with torch.no_grad():
            same = mean((scores.argmax(3) == shown).float(), weight, of_vectors=True)
        return {"loss/actor": loss, "policy/same_item": same, "grad/actor": gradient_norm(self.optim["actor"])}
