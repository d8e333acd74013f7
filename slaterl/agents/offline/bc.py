"""Behaviour cloning of all recorded trajectories, or of the best ones."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from slaterl.agents.losses import mean, valid_turns
from slaterl.agents.offline.base import MakeBelief, OfflineAgent, gradient_norm
from slaterl.beliefs.base import states_of
from slaterl.bounds import Positive, Share, Widths
from slaterl.data.trajectories import Trajectories
from slaterl.networks import LOG_STD_OF_DATA, gaussian_action, log_prob_of, mlp
from slaterl.rankers.base import Ranker


class BC(OfflineAgent):
    """Behaviour cloning: the policy minimises -log pi(a|s) as a tanh-Gaussian, or (pi(s) - a)^2 as a deterministic one.

    Args:
        ranker, belief, generator: see OfflineAgent.
        policy: `gaussian` or `deterministic`.
        top_fraction: share of the trajectories to imitate, largest returns first; 0.1 is 10 % BC, as in
            arXiv 2106.01345. Returns of users differ more than those of actions, so this chooses easy users and long
            sessions rather than good actions.
        pi_lr: Adam's learning rate of policy and belief.
        pi_hidden: widths of the hidden layers.
    """

    TERMS: ClassVar = ("loss/actor", "policy/error", "policy/beyond_data", "grad/actor")

    def __init__(
        self, *, ranker: Ranker, belief: MakeBelief, generator: torch.Generator,
        policy: Literal["gaussian", "deterministic"], top_fraction: Share, pi_lr: Positive, pi_hidden: Widths,
    ) -> None:  # fmt: skip
        super().__init__(ranker, belief, generator)
        self.gaussian, self.top_fraction = policy == "gaussian", top_fraction
        self.explores = self.gaussian
        outputs = (2 if self.gaussian else 1) * ranker.action_dim
        self.actor = mlp(self.actor_belief.state_dim, pi_hidden, outputs)
        self.add_optimizer("actor", self.actor, self.actor_belief, lr=pi_lr)

    def prepare(self, data: Trajectories) -> Trajectories:
        count = max(1, round(len(data) * self.top_fraction))
        if count < len(data):
            data = data[data.returns.topk(count).indices.sort().values]
        return super().prepare(data)

    def action(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        parameters = self.actor(state)
        return gaussian_action(parameters, generator, LOG_STD_OF_DATA) if self.gaussian else parameters.tanh()

    def update(self, batch: Trajectories) -> dict[str, Tensor]:
        """Take one step of the policy and its belief on B whole trajectories."""
        assert batch.actions is not None
        (state,) = states_of([self.actor_belief], batch)
        parameters = self.actor(state)
        action = gaussian_action(parameters, None) if self.gaussian else parameters.tanh()
        mask = valid_turns(batch)
        error = mean((action - batch.actions).square(), mask, of_vectors=True)
        loss = -mean(log_prob_of(parameters, batch.actions), mask) if self.gaussian else error
        self.minimise("actor", loss)
        with torch.no_grad():
            beyond = self.beyond_data(action, mask)
        return {
            "loss/actor": loss,
            "policy/error": error,
            "policy/beyond_data": beyond,
            "grad/actor": gradient_norm(self.optim["actor"]),
        }
