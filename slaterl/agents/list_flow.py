"""Generative flow over lists: slates drawn slot after slot, with a probability that grows with their reward.

Liu et al., "Generative Flow Network for Listwise Recommendation" (GFN4Rec), arXiv 2306.02239.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from slaterl.agents.base import ItemAgent
from slaterl.agents.losses import at, draw_turns, mean, valid_turns
from slaterl.beliefs.base import Belief, states_of
from slaterl.bounds import Count, Number, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.networks import mlp, with_gumbel_noise
from slaterl.rankers.base import argmax
from slaterl.rollout import Decision
from slaterl.runtime import exact_products


class ListFlow(ItemAgent):
    """A policy P(item | state, slots before), trained so that flow in and out of every list balance.

    A list starts empty with the flow F_0(s) and grows slot by slot. P is the softmax of <LN(MLP(s, slots before)), e_i>
    over items i, with learned embeddings e. R is the reward per slot, and the reward of the one list alone: values of
    later turns are not in it.

        trajectory: (log F_0 + log Z + sum_k log(P_k + b_f) - log(R + b_r))^2
        detailed: mean_k (log F_{k-1} + log(P_k + b_f) + log Z - log F_k)^2 + (log F_S + log Z - log(R + b_r))^2

    The flows can absorb Z, so it changes where they start and not what balances. But P of a list depends on the start:
    a larger F_0 balances a smaller P, and only lists that were shown are compared.

    Training takes any slates. If `unique`, P leaves out the items that are on the list already. A repeat in the data
    then has P = 0.

    Args:
        num_items, slate_size: sizes of the environment.
        belief: makes the belief that policy and flow read; all are trained together.
        generator: random stream of the updates.
        balance: which of the two losses.
        unique: show slates without repeats.
        item_dim: width of queries and item embeddings.
        turns: turns of a batch in an update, drawn again each time. Memory is B * turns * S * N numbers.
        forward_offset: b_f; a large one weakens the pull on items that P hardly ever draws.
        reward_offset: b_r, in rewards per slot; a large one makes the policy less greedy. Rewards below 0 count as 0.
        log_normaliser: log Z, a constant.
        pi_lr: Adam's learning rate; pi_hidden, flow_hidden: widths of the hidden layers of policy and flow.
    """

    TERMS: ClassVar[tuple[str, ...]] = ("loss/actor", "policy/probability", "value/log_flow", "value/log_reward")

    def __init__(
        self, *, num_items: int, slate_size: int, belief: Callable[[], Belief], generator: torch.Generator,
        balance: Literal["detailed", "trajectory"], unique: bool, item_dim: Count, turns: Count,
        forward_offset: Positive, reward_offset: Positive, log_normaliser: Number,
        pi_lr: Positive, pi_hidden: Widths, flow_hidden: Widths,
    ) -> None:  # fmt: skip
        super().__init__(num_items, slate_size)
        self.generators["update"] = generator
        self.balance, self.unique, self.turns = balance, unique, turns
        self.forward_offset, self.reward_offset, self.log_normaliser = forward_offset, reward_offset, log_normaliser
        self.actor_belief = belief()
        state, listed = self.actor_belief.state_dim, slate_size * item_dim
        self.actor = mlp(state + listed, pi_hidden, item_dim)
        self.norm = nn.LayerNorm(item_dim)
        self.flow = mlp(state + (listed if balance == "detailed" else 0), flow_hidden, 1)
        # Scores then start with a deviation of 1, because queries have the length sqrt(item_dim).
        self.item_embeddings = nn.Parameter(torch.randn(num_items, item_dim) / item_dim**0.5)
        parts = (self.actor, self.norm, self.flow, self.actor_belief, self.item_embeddings)
        self.add_optimizer("actor", *parts, lr=pi_lr)

    @property
    def acting_belief(self) -> Belief:
        return self.actor_belief

    def scores(self, state: Tensor, listed: Tensor) -> Tensor:
        """Score all items for the next slot: states [..., state], slots so far [..., S * E] -> [..., N]."""
        return self.norm(self.actor(state, listed)) @ self.item_embeddings.T

    def decide(
        self, state: Tensor, observation: Observation | PrivilegedObservation, generator: torch.Generator | None
    ) -> Decision:
        return Decision(self.fill(state, generator))

    @torch.no_grad()
    @exact_products()
    def fill(self, state: Tensor, generator: torch.Generator | None, uniform: Tensor | None = None) -> Tensor:
        """Fill slates [B, S] for states [B, state]: by draws from P, or without a generator by its largest entry.

        Args:
            uniform: [B, 1] whose slates are drawn uniformly instead; None for nobody's.
        """
        listed = state.new_zeros(state.shape[0], self.slate_size, self.item_embeddings.shape[1])
        slate = torch.zeros(listed.shape[:2], dtype=torch.int64, device=state.device)
        taken = torch.zeros(state.shape[0], self.num_items, dtype=torch.bool, device=state.device)
        for slot in range(self.slate_size):
            scores = self.scores(state, listed.flatten(1))
            if uniform is not None:
                scores = scores.masked_fill(uniform, 0)
            if self.unique:
                scores = scores.masked_fill(taken, -torch.inf)
            item = argmax(scores if generator is None else with_gumbel_noise(scores, generator))
            slate[:, slot], listed[:, slot] = item, self.item_embeddings[item]
            taken = taken.scatter(1, item.unsqueeze(1), True)
        return slate

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of policy, flow and belief on some turns of B whole trajectories."""
        (state,) = states_of([self.actor_belief], batch)
        shown, reward, weight = batch.slates[:, 1:], batch.rewards, valid_turns(batch)
        if self.turns < reward.shape[1]:
            turns, weight = draw_turns(self.turns, reward.shape[1], weight, self.generators["update"])
            state, shown, reward = at(state, turns), at(shown, turns), at(reward, turns)
        shown = shown.long()

        prefixes = self.prefixes(embedding(shown, self.item_embeddings))  # [B, T, S+1, S * E]
        of_lists = state.unsqueeze(2).expand(-1, -1, self.slate_size + 1, -1)
        prob = self.probability(self.scores(of_lists[:, :, :-1], prefixes[:, :, :-1]), shown)  # [B, T, S]
        log_prob = (prob + self.forward_offset).log()
        target = (reward.clamp(min=0) / self.slate_size + self.reward_offset).log()  # [B, T]
        if self.balance == "trajectory":
            flow = self.flow(state)  # [B, T, 1]
            inflow = flow[..., 0] + self.log_normaliser + log_prob.sum(2)
            loss = mean((inflow - target).square(), weight)
        else:
            flow = self.flow(of_lists, prefixes).squeeze(-1)  # [B, T, S+1]
            inflow = flow[..., :-1] + log_prob + self.log_normaliser
            steps = mean((inflow - flow[..., 1:]).square(), weight, of_vectors=True)
            loss = steps + mean((flow[..., -1] + self.log_normaliser - target).square(), weight)

        self.minimise("actor", loss)
        return {
            "loss/actor": loss,
            "policy/probability": mean(prob, weight, of_vectors=True),
            "value/log_flow": mean(flow[..., 0], weight),
            "value/log_reward": mean(target, weight),
        }

    def prefixes(self, items: Tensor) -> Tensor:
        """Return the lists of the first 0..S items, with zeros in the empty slots: [..., S, E] -> [..., S+1, S * E]."""
        filled = torch.ones(self.slate_size + 1, self.slate_size, device=items.device).tril(-1)
        return (items.unsqueeze(-3) * filled.unsqueeze(-1)).flatten(-2)

    def probability(self, scores: Tensor, shown: Tensor) -> Tensor:
        """Return the probabilities of the shown items [B, T, S] by the scores [B, T, S, N] of their slots."""
        if self.unique:
            before = shown.unsqueeze(2).expand(-1, -1, self.slate_size, -1)  # [B, T, S, S]
            counts = torch.ones(self.slate_size, self.slate_size, device=scores.device).tril(-1).expand(before.shape)
            scores = scores.masked_fill(torch.zeros_like(scores).scatter_add_(3, before, counts) > 0, -torch.inf)
        return (scores.gather(3, shown.unsqueeze(3)).squeeze(3) - scores.logsumexp(3)).exp()
