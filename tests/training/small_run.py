"""A stage in small: a manifest, loggers and a Trainer, for the tests of loggers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from slaterl.runs.run import Run
from slaterl.training.loggers import LogRow, logging_to, make_loggers
from slaterl.training.metrics import MetricsFile


class Line(lightning.LightningModule):
    """The smallest module that Lightning trains."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor) -> Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Rows(lightning.Callback):
    """Logs as `fit` does: one row an update, counted from the step that the run goes on from."""

    COLUMNS = ("step", "loss/critic", "train/return", "start")

    def __init__(self, file: Path, start: int, error: BaseException | None, log_row: LogRow) -> None:
        self.metrics, self.start, self.error = MetricsFile(file, self.COLUMNS, start), start, error
        self.step, self.log_row = start, log_row

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.step += 1
        row = {"loss/critic": 0.5 * self.step, "train/return": math.nan if self.step == 1 else 9.5, "start": self.start}
        self.metrics.append({"step": self.step, **row})
        self.log_row(row, self.step)

    def on_train_end(self, *_: Any) -> None:
        self.metrics.close()
        if self.error:
            raise self.error


def a_run(root: Path, seed: int = 1) -> Run:
    return Run(root, "online", "focused_topdown", f"sac-gems-seed{seed}", {"agent": {"gamma": 0.8}, "seed": seed})


def train(cfg: DictConfig, run: Run, updates: int = 3, start: int = 0, error: BaseException | None = None) -> Run:
    """A stage in small: the manifest, the loggers, a Trainer that has them."""
    with run.making(cfg, {}):
        loggers = make_loggers(cfg, run)
        file = run.path / "metrics.csv"
        with logging_to(loggers, file, start) as log_row:
            trainer = lightning.Trainer(
                accelerator="cpu",
                max_epochs=1,
                log_every_n_steps=1,
                logger=False,
                callbacks=[Rows(file, start, error, log_row)],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(Line(), torch.zeros(updates, 1))
    return run
