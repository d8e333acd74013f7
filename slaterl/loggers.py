"""Loggers beside metrics.csv."""

from __future__ import annotations

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from slaterl.runs import Run


def make_loggers(cfg: DictConfig, run: Run) -> list[Logger]:
    return []
