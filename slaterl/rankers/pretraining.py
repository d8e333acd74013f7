"""Pretraining GeMS on slates and clicks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import lightning as L
import torch
from torch import Tensor

from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.learner import Learner
from slaterl.rankers.gems import GeMS, GeMSLosses
from slaterl.seeds import stream


class Slates(NamedTuple):
    """B slates with their clicks, each [B, S]."""

    slates: Tensor
    clicks: Tensor


class GeMSPretraining(Learner):
    """Minimises GeMS' loss with Adam; `gems` is what is trained."""

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
        """Means over held-out slates, decoding the posterior's mean."""
        sums = torch.zeros(len(self.TERMS), dtype=torch.float64, device=self.device)
        count = 0
        for batch in batches:
            losses: GeMSLosses = self.gems.losses(batch.slates, batch.clicks, noise=None)
            sums += torch.stack([self.gems.total(losses), *losses]).double() * len(batch.slates)
            count += len(batch.slates)
        return dict(zip(self.VAL_TERMS, (sums / count).tolist(), strict=True))


class SlateData(L.LightningDataModule):
    """Shuffled batches of slates straight from trajectories; frame 0, which nobody chose, is left out.

    The order of an epoch depends on the seed and the epoch's number alone, so the step tells where one is.

    Args:
        data: on the learner's device.
        holdout: share of the trajectories, the first ones, kept for validation.
    """

    def __init__(
        self, data: Trajectories, learner: Learner, *, batch_size: int, epochs: int, holdout: float, seed: int
    ) -> None:
        super().__init__()
        held = max(1, round(len(data) * holdout))
        if held >= len(data):
            raise UserError(f"logged_data.trajectories={len(data)}: too few to hold out {held} for validation")
        self.held_out, self.training = data[:held], data[held:]
        self.horizon = data.slates.shape[1] - 1
        self.learner, self.batch_size, self.seed = learner, batch_size, seed
        self.size = len(self.training) * self.horizon
        self.steps_per_epoch = -(-self.size // batch_size)
        self.max_steps = epochs * self.steps_per_epoch

    @property
    def counters(self) -> Mapping[str, int]:
        epoch, step = divmod(self.learner.step, self.steps_per_epoch)
        return {"epoch": epoch, "slates": epoch * self.size + step * self.batch_size}  # an epoch's last batch is small

    @property
    def measures(self) -> Mapping[str, float]:
        return {}

    def _take(self, data: Trajectories, index: Tensor) -> Slates:
        """Slates by their flat number, trajectory after trajectory."""
        trajectory, turn = index // self.horizon, index % self.horizon + 1
        return Slates(data.slates[trajectory, turn], data.clicks[trajectory, turn])

    def held_out_batches(self) -> Iterator[Slates]:
        """All held-out slates in order."""
        size = len(self.held_out) * self.horizon
        for index in torch.arange(size, device=self.held_out.slates.device).split(2048):
            yield self._take(self.held_out, index)

    def train_dataloader(self) -> SlateData:
        return self

    def __len__(self) -> int:
        return self.max_steps - self.learner.step

    def __iter__(self) -> Iterator[Slates]:
        while self.learner.step < self.max_steps:
            epoch, first = divmod(self.learner.step, self.steps_per_epoch)
            order = torch.randperm(self.size, generator=stream(self.seed, f"slates of epoch {epoch}"))
            order = order.to(self.training.slates.device)
            for index in order.split(self.batch_size)[first:]:
                yield self._take(self.training, index)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
