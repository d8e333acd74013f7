"""CQL: critics that are pushed down where the data have no actions.

Kumar et al., "Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2006.04779, CQL(H).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from slaterl.agents.offline.base import EntropyActor, Turns, some_turns
from slaterl.errors import check_counts, check_positive, check_range


class CQL(EntropyActor):
    """SAC without entropy in the target, and alpha_c * (logsumexp_a Q(s, a) - Q(s, a_data)) in each critic's loss.

    The logsumexp is estimated with actions drawn uniformly, from pi(s) and from pi(s'), each weighted by its density.

    Args:
        conservatism: alpha_c, or its first value where there is a threshold.
        threshold: where given, alpha_c is learned so that the penalty comes to this (Lagrange); None keeps alpha_c.
        actions: draws of each kind in a state; turns: of the episode, drawn anew with every update, whose states are
            penalised.
        others: see EntropyActor.
    """

    MIN_TURNS: ClassVar = 2

    def __init__(
        self, *, conservatism: float, threshold: float | None, actions: int, turns: int, **common: Any
    ) -> None:
        check_positive(**{"agent.conservatism": conservatism})
        check_counts(**{"agent.actions": actions, "agent.turns": turns})
        if threshold is not None:
            check_range(0, float("inf"), **{"agent.threshold": threshold})
        super().__init__(**common)
        self.threshold, self.actions, self.turns = threshold, actions, turns
        self.log_conservatism = nn.Parameter(torch.tensor(math.log(conservatism)), requires_grad=threshold is not None)
        if threshold is not None:
            self.add_optimizer("conservatism", self.log_conservatism, lr=common["q_lr"])

    def further_loss(self, turns: Turns, q: Tensor) -> Tensor:
        some, chosen = some_turns(turns, self.turns, self.generators["update"])
        states = some.critic_state.unsqueeze(0).expand(self.actions, -1, -1, -1)  # [n, B, T, state]
        with torch.no_grad():
            shape = (*states.shape[:-1], self.ranker.action_dim)
            generator = self.generators["update"]
            uniform = 2 * torch.rand(shape, generator=generator, device=states.device) - 1
            log_uniform = states.new_full(shape[:-1], -self.ranker.action_dim * math.log(2))
            draws = [(uniform, log_uniform)]
            for actor_state in (some.actor_state, turns.actor_state[:, chosen + 1]):  # pi(s), pi(s')
                draws.append(self.sample(actor_state.expand(self.actions, -1, -1, -1)))
        scores = [self.q_values(self.critics, states, action) - log_prob for action, log_prob in draws]
        spread = torch.cat(scores, dim=1).logsumexp(1)  # [critics, B, T]
        penalty = (spread - q[:, :, chosen]).mean()
        weight = self.log_conservatism.exp()
        if self.threshold is None:
            return weight * penalty
        excess = penalty - self.threshold
        dual = weight * excess.detach()  # climbed by its own optimiser
        return weight.detach() * excess - (dual - dual.detach())
