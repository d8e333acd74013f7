"""Shuffled mini-batches of slates or clicks, epoch after epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from slaterl.seeds import stream
from slaterl.training.learner import Learner


class Epochs(L.LightningDataModule):
    """Yield each of `size` samples once per epoch, in batches. Subclasses define `UNIT` and `take`.

    The order of an epoch depends only on the seed and the epoch's number, so the step is enough to resume.

    Attributes:
        UNIT: plural name of the samples.
    """

    UNIT: ClassVar[str]

    def __init__(self, learner: Learner, size: int, *, batch_size: int, epochs: int, seed: int) -> None:
        super().__init__()
        self.learner, self.size, self.batch_size, self.seed = learner, size, batch_size, seed
        self.steps_per_epoch = -(-size // batch_size)
        self.max_steps = epochs * self.steps_per_epoch
        self.measures: Mapping[str, float] = {}

    @property
    def counters(self) -> Mapping[str, int]:
        epoch, step = divmod(self.learner.step, self.steps_per_epoch)
        # the last batch of an epoch is smaller
        return {"epoch": epoch, self.UNIT: epoch * self.size + step * self.batch_size}

    def take(self, index: Tensor) -> Any:
        """Return the batch of the samples with these numbers, [B] in 0..size - 1."""
        raise NotImplementedError

    def train_dataloader(self) -> Epochs:
        return self

    def __len__(self) -> int:
        return self.max_steps - self.learner.step

    def __iter__(self) -> Iterator[Any]:
        while self.learner.step < self.max_steps:
            epoch, first = divmod(self.learner.step, self.steps_per_epoch)
            order = torch.randperm(self.size, generator=stream(self.seed, f"{self.UNIT} of epoch {epoch}"))
            for index in order.to(self.learner.device).split(self.batch_size)[first:]:
                yield self.take(index)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
