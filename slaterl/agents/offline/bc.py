"""Behaviour cloning, of all recorded trajectories or of the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from slaterl.agents.offline.base import OfflineAgent, gradient_norm
from slaterl.beliefs.base import states_of
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError, check_positive, check_range, check_widths
from slaterl.networks import draw, log_prob_of, mlp


class BC(OfflineAgent):
    """Maximum likelihood of the data's actions under a tanh-Gaussian, or least squares of a deterministic policy.

    Args:
        policy: gaussian (loss: -log pi(a)) or deterministic (loss: squared error).
        top_fraction: share of the trajectories, those of the largest returns, that is learned from; 0.1 is 10 % BC.
        pi_lr: Adam's learning rate of policy and belief; pi_hidden: widths of the hidden layers.
    """

    TERMS: ClassVar = ("loss/actor", "policy/error", "policy/beyond_data", "grad/actor")

    def __init__(
        self, *, policy: str, top_fraction: float, pi_lr: float, pi_hidden: Sequence[int], **common: Any
    ) -> None:
        check_range(0, 1, **{"agent.top_fraction": top_fraction})
        check_positive(**{"agent.pi_lr": pi_lr, "agent.top_fraction": top_fraction})
        check_widths(**{"agent.pi_hidden": pi_hidden})
        if policy not in ("gaussian", "deterministic"):
            raise UserError(f"agent.policy={policy}: expected gaussian or deterministic")
        super().__init__(**common)
        self.gaussian, self.top_fraction = policy == "gaussian", top_fraction
        self.explores = self.gaussian
        outputs = (2 if self.gaussian else 1) * self.ranker.action_dim
        self.actor = mlp(self.actor_belief.state_dim, pi_hidden, outputs)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    def prepare(self, data: Trajectories) -> Trajectories:
        count = max(1, round(len(data) * self.top_fraction))
        if count < len(data):
            data = data[data.returns.topk(count).indices.sort().values]
        return super().prepare(data)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        parameters = self.actor(state)
        if not self.gaussian:
            return parameters.tanh()
        return (parameters.chunk(2, dim=-1)[0] if generator is None else draw(parameters, generator)[0]).tanh()

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """One step of the policy and its belief on B whole trajectories."""
        assert batch.actions is not None
        (state,) = states_of([self.actor_belief], batch)
        parameters = self.actor(state)
        action = (parameters.chunk(2, dim=-1)[0] if self.gaussian else parameters).tanh()
        error = (action - batch.actions).square().mean()
        loss = -log_prob_of(parameters, batch.actions).mean() if self.gaussian else error
        self.minimise("actor", loss)
        with torch.no_grad():
            beyond = self.beyond_data(action)
        return {
            "loss/actor": loss,
            "policy/error": error,
            "policy/beyond_data": beyond,
            "grad/actor": gradient_norm(self.optim["actor"]),
        }
