"""Wolpertinger: SAC in the space of item embeddings, refined among the nearest items by the critic.

Dulac-Arnold et al., "Deep Reinforcement Learning in Large Discrete Action Spaces", arXiv 1512.07679, for slates as in
Deffayet et al. 2023 (SAC + WkNN): one proto-item per slot, and slots refined one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.agents.losses import (
    bootstrap,
    continuing_turns,
    mean,
    soft_policy_loss,
    temperature_loss,
    valid_turns,
)
from slaterl.agents.online.sac import SAC
from slaterl.beliefs.base import Belief, JoinedBeliefs, states_of
from slaterl.bounds import Count, Fraction, NonNegative, Positive, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.envs.observation import Observation, PrivilegedObservation
from slaterl.errors import UserError
from slaterl.networks import frozen, polyak, tanh_gaussian
from slaterl.rankers.embedding_space import KHeadArgmax
from slaterl.rollout import Decision, Policy
from slaterl.runtime import exact_products


class Wolpertinger(SAC):
    """SAC whose action is a proto-item for each slot. A slot shows the best of its k nearest items by Q.

    The objectives are as in SAC. The critics read their belief and the embeddings of the whole slate. The policy is
    improved through its proto-items, as if they were shown. In the published code the refining critic reads the
    actor's belief; here it reads its own.

    Args:
        item_embeddings: [N, E], fixed.
        num_items, slate_size: N and S of the environment.
        neighbours: k; 1 is nearest-neighbour lookup.
        others: see SAC.

    Raises:
        UserError: neighbours exceeds the number of items.
    """

    REFINES: ClassVar = True

    ranker: KHeadArgmax

    def __init__(
        self,
        *,
        item_embeddings: Tensor,
        num_items: int,
        slate_size: int,
        neighbours: Count,
        belief: Callable[[], Belief],
        generator: torch.Generator,
        gamma: Fraction,
        tau: Fraction,
        q_lr: Positive,
        pi_lr: Positive,
        alpha_lr: Positive,
        q_hidden: Widths,
        pi_hidden: Widths,
        num_critics: Count,
        initial_alpha: Positive,
        target_entropy_scale: NonNegative,
        layer_norm: bool = False,
    ) -> None:
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
            layer_norm=layer_norm,
        )
        self.num_items, self.slate_size, self.neighbours = num_items, slate_size, neighbours

    @property
    def acting_belief(self) -> JoinedBeliefs:
        return JoinedBeliefs([self.actor_belief, self.critic_belief])

    def decide(
        self, state: Tensor, observation: Observation | PrivilegedObservation, generator: torch.Generator | None
    ) -> Decision:
        actor_state, critic_state = state.chunk(2, dim=1)
        # The critics learn from the slate alone, so no action is recorded.
        return Decision(self.refine(critic_state, self.action(actor_state, generator)))

    def random_policy(self, generator: torch.Generator) -> Policy:
        return EpsilonOracle(epsilon=1.0, num_items=self.num_items, slate_size=self.slate_size, generator=generator)

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of critics, policy, temperature and targets on B whole trajectories.

        As in SAC, but the critics read the shown slates, and the target reads the refined slate.
        """
        mask, continuing = valid_turns(batch), continuing_turns(batch)
        generator, alpha = self.generators["update"], self.log_alpha.detach().exp()
        critic_state, actor_state = states_of([self.critic_belief, self.actor_belief], batch)  # [B, H, state]
        gaussian = self.actor(actor_state)  # [B, H, 2A]

        # critics: y = r + gamma * (min Q'(s', slate') - alpha * log pi(a'|s')), slate' refined from a'
        with torch.no_grad():
            proto_items, next_log_prob = tanh_gaussian(gaussian[:, 1:], generator)
            next_action = self.ranker.action_of(self.refine(critic_state[:, 1:], proto_items))
            next_q = self.q_values(self.target_critics, critic_state[:, 1:], next_action).amin(0)
            target = bootstrap(batch.rewards, next_q - alpha * next_log_prob, self.gamma, continuing)
        q = self.q_values(self.critics, critic_state, self.ranker.action_of(batch.slates[:, 1:]))
        critic_loss = mean((q - target).square(), mask)

        # policy: alpha * log pi(a|s) - min Q(s, a) of the proto-items; temperature as in SAC
        action, log_prob = tanh_gaussian(gaussian, generator)
        with frozen(self.critics):
            policy_q = self.q_values(self.critics, critic_state.detach(), action).amin(0)
        actor_loss = soft_policy_loss(alpha, log_prob, policy_q, mask)
        alpha_loss = temperature_loss(self.log_alpha, log_prob, self.target_entropy, mask)

        self.descend(critic=critic_loss, actor=actor_loss, alpha=alpha_loss)
        polyak(self.critics, self.target_critics, self.tau)
        return {
            "loss/critic": critic_loss,
            "loss/actor": actor_loss,
            "loss/alpha": alpha_loss,
            "value/q": mean(q, mask),
            "value/target": mean(target, mask),
            "policy/entropy": -mean(log_prob, mask),
            "policy/alpha": alpha,
        }

    @exact_products()
    def nearest(self, action: Tensor) -> Tensor:
        """Return the k items nearest to each slot's proto-item by Euclidean distance: [..., A] -> [..., S, k]."""
        items = self.ranker.item_embeddings
        queries = self.ranker.to_latent(action).unflatten(-1, (self.slate_size, -1))
        # |q - e|^2 = |q|^2 - 2 (q e - |e|^2 / 2), and |q|^2 is the same for all items.
        nearness = queries @ items.T - items.square().sum(1) / 2
        return nearness.topk(self.neighbours, dim=-1).indices

    @torch.no_grad()
    def refine(self, state: Tensor, action: Tensor) -> Tensor:
        """Choose slates [..., S] for the critics' belief states [..., state] and actions [..., A].

        Each slot in turn takes the candidate with the largest Q', valued as if it also filled all later slots. The
        first layer is a sum over slots, so a candidate changes it by one row of a table.
        """
        first, *rest = self.target_critics.members[0].children()
        assert isinstance(first, nn.Linear)
        of_state, of_slots = first.weight.split([state.shape[-1], self.ranker.action_dim], dim=1)
        by_slot = of_slots.unflatten(1, (self.slate_size, -1)).permute(1, 2, 0)  # [S, E, hidden]
        share = self.ranker.item_embeddings @ by_slot  # [S, N, hidden]: an item's share in a slot
        filling = share.flip(0).cumsum(0).flip(0)  # share of an item in this slot and all later ones
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
