"""stage=export: a dataset for other libraries, by way of Minari."""

from __future__ import annotations

from omegaconf import DictConfig

from slaterl.config.build import build_env, resolve_device
from slaterl.console import note
from slaterl.data.formats import minari
from slaterl.errors import UserError
from slaterl.runs.run import Run
from slaterl.stages.collect import collect, load_dataset


def export(cfg: DictConfig) -> Run:
    """Find or make the dataset, and write it where `minari.load_dataset(export.minari)` finds it."""
    if cfg.export.minari is None:
        raise UserError("export.minari: give the id of the Minari dataset, such as slaterl/focused_topdown-medium-v0")
    run = collect(cfg)
    env = build_env(cfg.env, resolve_device(cfg.device))
    data, metadata = load_dataset(run, env)
    folder = minari.exported(cfg.export.minari, metadata["checksum"])
    if folder is not None:
        note(f"already exported: {folder}")
        return run
    folder = minari.export(data, metadata, cfg.export.minari, env.num_items)
    note(f"minari.load_dataset({cfg.export.minari!r}) reads it, from {folder}")
    return run
