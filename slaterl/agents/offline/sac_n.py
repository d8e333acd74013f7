"""SAC-N and EDAC: many critics, whose minimum is low where the data say little.

An et al., "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble", arXiv 2110.01548.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from slaterl.agents.offline.base import EntropyActor, Turns, some_turns
from slaterl.errors import UserError, check_counts, check_range


class SACN(EntropyActor):
    """SAC with N critics: y = r + gamma * (min_i Q'_i(s', a') - alpha * log pi(a' | s')). See EntropyActor."""

    def next_value(self, turns: Turns) -> Tensor:
        action, log_prob = self.sample(turns.actor_state[:, 1:])
        q = self.q_values(self.target_critics, turns.critic_state[:, 1:], action).amin(0)
        return q - self.log_alpha.exp() * log_prob


class EDAC(SACN):
    """SAC-N with critics whose gradients by the action are kept apart: + eta / (N - 1) * sum of their cosines.

    The sum stands beside the sum of the critics' squared errors, as in the paper's algorithm 1.

    Args:
        eta: weight of the cosines.
        turns: of the episode, drawn anew with every update, in whose states they are taken.
        others: see EntropyActor.
    """

    MIN_TURNS: ClassVar = 2

    def __init__(self, *, eta: float, turns: int, **common: Any) -> None:
        check_range(0, float("inf"), **{"agent.eta": eta})
        check_counts(**{"agent.turns": turns})
        if common["num_critics"] < 2:
            raise UserError(f"agent.num_critics={common['num_critics']}: diversity takes at least 2")
        super().__init__(**common)
        self.eta, self.turns = eta, turns

    def further_loss(self, turns: Turns, q: Tensor) -> Tensor:
        some, _ = some_turns(turns, self.turns, self.generators["update"])
        count = len(self.critics.members)
        # an action for each critic, so that one backward pass gives each its own gradient
        action = some.action.expand(count, -1, -1, -1).clone().requires_grad_()
        inputs = [torch.cat([some.critic_state, self.ranker.to_latent(own)], dim=-1) for own in action]
        values = [member(own) for member, own in zip(self.critics.members, inputs, strict=True)]
        (gradient,) = torch.autograd.grad(torch.stack(values).sum(), action, create_graph=True)
        directions = normalize(gradient, dim=-1)
        # the sum over pairs i != j is |sum of directions|^2 - N
        cosines = directions.sum(0).square().sum(-1) - directions.square().sum((0, -1))
        # each critic has the sum beside its own squared error, and the loss is the critics' mean
        return self.eta * cosines.mean() / (count - 1) / count
