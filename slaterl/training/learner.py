"""Base class of GeMS' pretraining and all agents, so that there is one way to log, checkpoint and resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from slaterl.errors import UserError


class TrainingDiverged(UserError):
    """A term of the loss became NaN or infinite. The last good checkpoint is kept."""


class TermMeter:
    """Means of scalar terms between two readings. Sums stay on the device, so a step never waits for the host."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.clear()

    def clear(self) -> None:
        self.sums: Tensor | None = None
        self.first_bad: Tensor | None = None
        self.count = 0

    def add(self, terms: dict[str, Tensor], step: int) -> None:
        """Add the terms of one step."""
        values = torch.stack([terms[name].detach() for name in self.names])
        if self.sums is None:
            self.sums = torch.zeros_like(values)
            self.first_bad = torch.zeros_like(values, dtype=torch.int64)
        assert self.first_bad is not None
        self.sums = self.sums.to(values.device) + values  # a resumed run loads its sums to the CPU
        first_bad = self.first_bad.to(values.device)
        self.first_bad = torch.where(values.isfinite() | (first_bad > 0), first_bad, step)
        self.count += 1

    def check(self) -> None:
        """Raise TrainingDiverged with the first term that became NaN or infinite, and its step."""
        if self.first_bad is None:
            return
        bad = [(step, name) for step, name in zip(self.first_bad.tolist(), self.names, strict=True) if step]
        if bad:
            step, name = min(bad, key=lambda pair: pair[0])
            raise TrainingDiverged(
                f"{name} is not finite since step {step}; training stopped, earlier checkpoints are kept"
            )

    def read(self) -> dict[str, float]:
        """Return the means since the last reading, and start again at zero."""
        self.check()
        if self.sums is None:
            return {}
        means = dict(zip(self.names, (self.sums / self.count).tolist(), strict=True))
        self.clear()
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "first_bad": self.first_bad, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.first_bad, self.count = state["sums"], state["first_bad"], state["count"]


class Learner(L.LightningModule):
    """A module with its optimisers, its step counter and one `update` per batch.

    `update` steps the optimisers itself (Lightning's manual optimisation, unwrapped). Lightning counts every wrapped
    optimiser step as a global step, so with three optimisers its count differs from `step`.

    Attributes:
        TERMS: names of the scalars that `update` returns. They are logged and checked for NaN.
        step: counts the steps of the protocol; the data module sets it before the first update.
        optim: the optimisers by name, filled by `add_optimizer`.
        generators: the random streams that `update` draws from; checkpoints save them.
    """

    TERMS: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.step = 0
        self.optim: dict[str, Optimizer] = {}
        self.generators: dict[str, torch.Generator] = {}
        self.meter = TermMeter(self.TERMS)

    def add_optimizer(self, name: str, *modules: torch.nn.Module | torch.nn.Parameter, lr: float) -> None:
        """Add Adam over all parameters of these modules that require a gradient."""
        parameters: list[torch.nn.Parameter] = []
        for module in modules:
            parameters += [module] if isinstance(module, torch.nn.Parameter) else list(module.parameters())
        self.optim[name] = Adam([p for p in parameters if p.requires_grad], lr=lr, fused=True)

    def minimise(self, name: str, loss: Tensor) -> None:
        """Take one step of the optimiser `name` down the gradient of `loss`."""
        self.optim[name].zero_grad(set_to_none=True)
        loss.backward()
        self.optim[name].step()

    def update(self, batch: Any) -> dict[str, Tensor]:
        """Make one gradient update. Returns the terms named by TERMS as scalars on the device."""
        raise NotImplementedError

    def watch(self, step: int, means: Mapping[str, float]) -> None:
        """Hook: inspect the logged means and warn the user if needed."""

    def steps_in(self, batch: Any) -> int:
        """Return the number of protocol steps that an update on this batch counts for."""
        return 1

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.step += self.steps_in(batch)
        self.meter.add(self.update(batch), self.step)

    def check_finite(self) -> None:
        """Raise TrainingDiverged with the term or the parameter that is NaN or infinite."""
        self.meter.check()
        for name, parameter in self.named_parameters():
            if not parameter.isfinite().all():
                kept = "training stopped, earlier checkpoints are kept"
                raise TrainingDiverged(f"the parameter {name} is not finite at step {self.step}; {kept}")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Data modules yield batches on the right device; Lightning would copy their containers."""
        return batch

    def configure_optimizers(self) -> list[Optimizer]:
        return list(self.optim.values())

    def learner_state(self) -> dict[str, Any]:
        """Return everything that the next update depends on, except the data: tensors and plain values."""
        return {
            "module": self.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optim.items()},
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
            "meter": self.meter.state_dict(),
            "step": self.step,
        }

    def load_learner_state(self, state: dict[str, Any]) -> None:
        """Restore what learner_state returned."""
        self.load_state_dict(state["module"])
        for name, optimizer in self.optim.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        self.meter.load_state_dict(state["meter"])
        self.step = state["step"]
