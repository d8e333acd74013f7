"""Users without a simulator: what follows from dataset=log and env=learned for other settings, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from slaterl.config.build import simulates
from slaterl.data.formats.tables import PARQUET, TEXT
from slaterl.errors import UserError

SIZES = ("num_items", "slate_size", "episode_length")
# stages that act in a simulator, and what to use instead
_SIMULATING = {
    "online": "train with stage=offline",
    "log_data": "stage=collect reads it",
    "benchmark": "leave out dataset=log",
}


def is_log(dataset: DictConfig) -> bool:
    """Whether the dataset is a log of one's own."""
    return "columns" in dataset


def log_name(dataset: DictConfig) -> str:
    """Name a log by its file or folder, without the ending."""
    name = Path(dataset.path).expanduser().resolve().name
    name = name[:-3] if name.lower().endswith(".gz") else name
    return (Path(name).stem if name.lower().endswith((*TEXT, *PARQUET)) else name) or dataset.name


def settle_learned(cfg: DictConfig, given: Iterable[str]) -> None:
    """Let episodes of env=learned be as long as the file's sessions, though a scale sets the length of others."""
    if "user_model" in cfg.env and "env.episode_length" not in given:
        cfg.env.episode_length = "${user_model_of:${.user_model},episode_length}"


def settle_log(cfg: DictConfig, given: Iterable[str]) -> None:
    """Set what follows from dataset=log: the name of the environment, GeMS' data, and a validation without a simulator.

    Args:
        given: keys of the command line.

    Raises:
        UserError: the settings ask for a simulator, which a log does not have.
    """
    given, env, dataset = set(given), cfg.env, cfg.dataset
    if not is_log(dataset):
        if not simulates(env):
            raise UserError(f"env={env.name}: only dataset=log sets it; give dataset=log dataset.path=<file>")
        return
    if "user_model" in set(env):  # a node does not contain keys without a value
        data = "logged_data.source=dataset dataset=file dataset.path=<its trajectories.safetensors>"
        raise UserError(f"env={env.name}: leave out dataset=log; to pretrain on its data, give {data}")
    if simulates(env):
        raise UserError(f"env={env.name}: dataset=log comes from no simulator; leave out env")
    for key in sorted(given):
        if key.startswith("env."):
            setting = key.partition(".")[2]
            instead = f"use dataset.{setting}" if setting in SIZES else "leave it out"
            raise UserError(f"{key}: dataset=log sets it; {instead}")
    stage = cfg.stage.name
    if stage in _SIMULATING:
        raise UserError(f"stage={stage}: dataset=log has no simulator to act in; {_SIMULATING[stage]}")
    if stage == "evaluate" and cfg.evaluation == "simulator":
        raise UserError("stage=evaluate: dataset=log has no simulator to act in; use evaluation=user_model")
    if "logged_data.source" in given and cfg.logged_data.source != "dataset":
        raise UserError(f"logged_data.source={cfg.logged_data.source}: its items are not those of dataset=log")
    if "offline.validation" in given and cfg.offline.validation == "simulator":
        raise UserError("offline.validation=simulator: dataset=log has no simulator; use user_model, fqe or none")
    cfg.logged_data.source = "dataset"
    if cfg.offline.validation == "simulator":
        cfg.offline.validation = "user_model"
    if not OmegaConf.is_missing(dataset, "path"):
        env.name = log_name(dataset)
    for name in SIZES:  # a scale sets the length for simulators
        env[name] = None
