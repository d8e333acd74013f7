"""Wolpertinger: SAC in the space of item embeddings, refined among the nearest items by the critic.

Dulac-Arnold et al., "Deep Reinforcement Learning in Large Discrete Action Spaces", arXiv 1512.07679, for slates as in
Deffayet et al. 2023 (SAC + WkNN): one proto-item a slot, and the slots refined one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.agents.online.sac import SAC
from slaterl.beliefs.base import Belief, JoinedBeliefs
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.errors import UserError, check_counts
from slaterl.rankers.embedding_space import KHeadArgmax
from slaterl.rollout import Decision, Policy


class Wolpertinger(SAC):
    """The policy's action is a proto-item for each slot; a slot shows that one of its k nearest items which Q prefers.

    The critics read their belief and the embeddings of the whole slate; the policy is improved through its proto-items,
    as if they were shown. (In the published code the refining critic reads the actor's belief; here it reads its own.)

    Args:
        item_embeddings: [N, E], fixed.
        neighbours: k; 1 is nearest-neighbour lookup.
        others: see SAC.
    """

    REFINES: ClassVar = True

    def __init__(
        self,
        *,
        item_embeddings: Tensor,
        num_items: int,
        slate_size: int,
        neighbours: int,
        belief: Callable[[], Belief],
        generator: torch.Generator,
        gamma: float,
        tau: float,
        q_lr: float,
        pi_lr: float,
        alpha_lr: float,
        q_hidden: Sequence[int],
        pi_hidden: Sequence[int],
        num_critics: int,
        initial_alpha: float,
        target_entropy_scale: float,
    ) -> None:
        check_counts(**{"agent.neighbours": neighbours})
        if neighbours > num_items:
            raise UserError(f"agent.neighbours={neighbours}: more than env.num_items={num_items}")
        super().__init__(
            ranker=KHeadArgmax(item_embeddings=item_embeddings, slate_size=slate_size, unique=False),
            belief=belief,
            generator=generator,
            gamma=gamma,
            tau=tau,
            q_lr=q_lr,
            pi_lr=pi_lr,
            alpha_lr=alpha_lr,
            q_hidden=q_hidden,
            pi_hidden=pi_hidden,
            num_critics=num_critics,
            initial_alpha=initial_alpha,
            target_entropy_scale=target_entropy_scale,
        )
        self.num_items, self.slate_size, self.neighbours = num_items, slate_size, neighbours

    @property
    def acting_belief(self) -> JoinedBeliefs:
        return JoinedBeliefs([self.actor_belief, self.critic_belief])

    def decide(
        self, state: Tensor, observation: Observation | PrivilegedObservation, generator: torch.Generator | None
    ) -> Decision:
        actor_state, critic_state = state.chunk(2, dim=1)
        # the slate says all that the critics learn from
        return Decision(self.refine(critic_state, self.action(actor_state, generator)))

    def random_policy(self, generator: torch.Generator) -> Policy:
        return EpsilonOracle(epsilon=1.0, num_items=self.num_items, slate_size=self.slate_size, generator=generator)

    def behaviour(self, batch: Trajectories) -> Tensor:
        return self.ranker.action_of(batch.slates[:, 1:])

    def served(self, state: Tensor, action: Tensor) -> Tensor:
        return self.ranker.action_of(self.refine(state, action))

    def nearest(self, action: Tensor) -> Tensor:
        """The k items of the smallest Euclidean distance to each slot's proto-item, [..., A] -> [..., S, k]."""
        items = self.ranker.item_embeddings
        queries = self.ranker.to_latent(action).unflatten(-1, (self.slate_size, -1))
        # |q - e|^2 = |q|^2 - 2 (q e - |e|^2 / 2), of which the first term is the same for all items
        nearness = queries @ items.T - items.square().sum(1) / 2
        return nearness.topk(self.neighbours, dim=-1).indices

    @torch.no_grad()
    def refine(self, state: Tensor, action: Tensor) -> Tensor:
        """Slates [..., S] for the critics' belief states [..., H] and actions [..., A].

        Slot after slot the candidate of the largest Q' where it fills the slots after it, too. A first layer is a sum
        over slots, so that a candidate changes it by a row of a table.
        """
        first, *rest = self.target_critics.members[0]
        of_state, of_slots = first.weight.split([state.shape[-1], self.ranker.action_dim], dim=1)
        by_slot = of_slots.unflatten(1, (self.slate_size, -1)).permute(1, 2, 0)  # [S, E, hidden]
        share = self.ranker.item_embeddings @ by_slot  # [S, N, hidden] what an item adds in a slot
        filling = share.flip(0).cumsum(0).flip(0)  # in this slot and all after it
        hidden = linear(state, of_state, first.bias)
        slate = []
        for slot, candidates in enumerate(self.nearest(action).unbind(-2)):
            value = hidden.unsqueeze(-2) + filling[slot][candidates]  # [..., k, hidden]
            for layer in rest:
                value = layer(value)
            chosen = candidates.gather(-1, value.argmax(-2))
            slate.append(chosen)
            hidden = hidden + share[slot][chosen.squeeze(-1)]
        return torch.cat(slate, dim=-1)
