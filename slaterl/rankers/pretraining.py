"""Pretraining GeMS on slates and clicks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.rankers.gems import GeMS, GeMSLosses
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

    def __init__(self, gems: GeMS, *, lr: float, generator: torch.Generator) -> None:
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
    """The slates of trajectories, without frame 0, which no policy chose.

    Args:
        data: on the learner's device.
        holdout: share of the trajectories used for validation, the first ones.
        source: the setting that chose the data, for the message.
        others: see Epochs.

    Raises:
        UserError: no trajectory would be left to train on.
    """

    UNIT: ClassVar = "slates"

    def __init__(self, data: Trajectories, learner: Learner, *, holdout: float, source: str, **others: int) -> None:
        held = max(1, round(len(data) * holdout))
        if held >= len(data):
            raise UserError(
                f"{source}: too few trajectories ({len(data)}); pretrain.holdout={holdout} keeps {held} for validation "
                "and leaves none to train on"
            )
        horizon = data.slates.shape[1] - 1
        super().__init__(learner, (len(data) - held) * horizon, **others)
        self.held_out, self.training, self.horizon = data[:held], data[held:], horizon

    def take(self, index: Tensor) -> Slates:
        return self._slates(self.training, index)

    def held_out_batches(self) -> Iterator[Slates]:
        """Yield batches of all held-out slates, in order."""
        size = len(self.held_out) * self.horizon
        for index in torch.arange(size, device=self.held_out.slates.device).split(2048):
            yield self._slates(self.held_out, index)

    def _slates(self, data: Trajectories, index: Tensor) -> Slates:
        """Select slates by their flat index, one trajectory after the other."""
        trajectory, turn = index // self.horizon, index % self.horizon + 1
        return Slates(data.slates[trajectory, turn], data.clicks[trajectory, turn])
