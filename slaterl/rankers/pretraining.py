"""Pretraining GeMS on slates and clicks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from slaterl.data.groups import boundary
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.rankers.gems import GeMSLosses, SlateVAE
from slaterl.training.epochs import Epochs
from slaterl.training.learner import Learner


class Slates(NamedTuple):
    """B slates with their clicks, each [B, S]."""

    slates: Tensor
    clicks: Tensor


class GeMSPretraining(Learner):
    """Train `gems` by minimising its loss with Adam."""

    TERMS: ClassVar = ("loss/total", "loss/slate", "loss/click", "loss/kl", "loss/prior", "accuracy/slot")
    VAL_TERMS: ClassVar = tuple(f"val/{name}" for name in TERMS)

    def __init__(self, gems: SlateVAE, *, lr: float, generator: torch.Generator) -> None:
        super().__init__()
        self.gems = gems
        self.generators["noise"] = generator
        self.add_optimizer("gems", gems, lr=lr)

    def update(self, batch: Slates) -> dict[str, Tensor]:
        noise_shape = (len(batch.slates), self.gems.action_dim)
        noise = torch.randn(noise_shape, generator=self.generators["noise"], device=self.device)
        losses = self.gems.losses(batch.slates, batch.clicks, noise)
        total = self.gems.total(losses)
        self.minimise("gems", total)
        return dict(zip(self.TERMS, (total, *losses), strict=True))

    @torch.no_grad()
    def validate(self, batches: Iterator[Slates]) -> dict[str, float]:
        """Return mean losses over held-out slates, decoding the posterior mean."""
        sums = torch.zeros(len(self.TERMS), dtype=torch.float64, device=self.device)
        count = 0
        for batch in batches:
            losses: GeMSLosses = self.gems.losses(batch.slates, batch.clicks, noise=None)
            sums += torch.stack([self.gems.total(losses), *losses]).double() * len(batch.slates)
            count += len(batch.slates)
        return dict(zip(self.VAL_TERMS, (sums / count).tolist(), strict=True))


class SlateData(Epochs):
    """The slates of trajectories, without padding and without frame 0, which no policy chose.

    Args:
        data: on the learner's device.
        holdout: share of the trajectories used for validation, the first ones. The pieces of one user lie side by side,
            and are on one side of the boundary.
        source: the setting that chose the data, for the message.
        others: see Epochs.

    Raises:
        UserError: no trajectory would be left to train on.
    """

    UNIT: ClassVar = "slates"

    def __init__(self, data: Trajectories, learner: Learner, *, holdout: float, source: str, **others: int) -> None:
        held = boundary(data, max(1, round(len(data) * holdout)))
        if held >= len(data):
            raise UserError(
                f"{source}: too few trajectories ({len(data)}); pretrain.holdout={holdout} keeps {held} for validation "
                "and leaves none to train on"
            )
        horizon = data.slates.shape[1] - 1
        self.held_out, self.training, self.horizon = data[:held], data[held:], horizon
        super().__init__(learner, self.training.turns, **others)
        self.held_places, self.places = _places(self.held_out), _places(self.training)

    def take(self, index: Tensor) -> Slates:
        return self._slates(self.training, index if self.places is None else self.places[index])

    def held_out_batches(self) -> Iterator[Slates]:
        """Yield batches of all held-out slates, in order."""
        everything = torch.arange(self.held_out.turns, device=self.held_out.slates.device)
        for index in (everything if self.held_places is None else self.held_places).split(2048):
            yield self._slates(self.held_out, index)

    def _slates(self, data: Trajectories, index: Tensor) -> Slates:
        """Select slates by their flat index, one trajectory after the other, H turns each."""
        trajectory, turn = index // self.horizon, index % self.horizon + 1
        return Slates(data.slates[trajectory, turn], data.clicks[trajectory, turn])


def _places(data: Trajectories) -> Tensor | None:
    """Return the flat indices of the turns of sessions of different lengths; None if all have H turns."""
    return None if data.lengths is None else data.mask.flatten().nonzero().squeeze(1)
