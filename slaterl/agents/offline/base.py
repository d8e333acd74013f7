"""Base class of the offline agents that act through a ranker, and the actions that they learn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from slaterl.agents.base import LatentAgent
from slaterl.beliefs.base import Belief
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.rankers.base import Ranker

MakeBelief = Callable[[], Belief]


class OfflineAgent(LatentAgent):
    """An agent that learns from recorded trajectories. A subclass gives `action` and `update`.

    It learns actions of its own ranker, in [-1, 1]: those that were recorded, if the data were collected through it.
    Otherwise a_t = action_of(slate of frame t + 1). So it can learn from any behaviour: random slates, a log.

    Args:
        ranker: the ranker that the agent acts through, already trained.
        belief: makes a belief; called once for each network that reads one.
        generator: random stream of the updates.

    Attributes:
        data_low, data_high: [A] the range of the data's actions, set by `prepare`.
    """

    LEARNS_FROM: ClassVar = "dataset"

    data_low: Tensor
    data_high: Tensor

    def __init__(self, ranker: Ranker, belief: MakeBelief, generator: torch.Generator) -> None:
        super().__init__(ranker)
        self.generators["update"] = generator
        self.actor_belief = of_frames(belief)
        self.register_buffer("data_low", torch.full((ranker.action_dim,), -1.0))
        self.register_buffer("data_high", torch.full((ranker.action_dim,), 1.0))

    @torch.no_grad()
    def prepare(self, data: Trajectories) -> Trajectories:
        """Called once before training: records the range of the actions [N, H, A]. Reads them if the data have none."""
        if data.actions is None:
            data = with_actions(data, self.ranker)
        assert data.actions is not None
        self.data_low.copy_(data.actions.amin((0, 1)))
        self.data_high.copy_(data.actions.amax((0, 1)))
        return data

    def beyond_data(self, action: Tensor) -> Tensor:
        """Return the share of the components of actions [..., A] that lie outside the range of the data."""
        return ((action < self.data_low) | (action > self.data_high)).float().mean()


def of_frames(belief: MakeBelief) -> Belief:
    """Make a belief. Raise UserError if it reads more than frames, which is all that a dataset has."""
    made = belief()
    if made.sees_hidden:
        raise UserError("belief=none: recorded trajectories do not hold the hidden state; use belief=gru")
    return made


@torch.no_grad()
def with_actions(data: Trajectories, ranker: Ranker) -> Trajectories:
    """Add the actions [N, H, A] in [-1, 1] that a ranker's encoder reads from the slates."""
    actions = []
    for start in range(0, len(data), 256):
        part = data[start : start + 256]
        actions.append(ranker.action_of(part.slates[:, 1:].flatten(0, 1)).unflatten(0, (len(part), -1)))
    return dataclasses.replace(data, actions=torch.cat(actions))


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Return the Euclidean norm of all gradients of an optimiser's parameters."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).norm()
