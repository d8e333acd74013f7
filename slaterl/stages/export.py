"""stage=export: a dataset for other libraries, in Minari's format, or a policy that acts without slaterl."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig

from slaterl.console import note
from slaterl.data import trajectories
from slaterl.data.formats import minari
from slaterl.errors import UserError
from slaterl.runs.products import Product, product_of
from slaterl.runs.run import Run
from slaterl.stages.exported import exported_policy


def export(cfg: DictConfig) -> Product:
    """Return the policy of `checkpoint`, or the dataset that is written to Minari's folder as `export.minari`."""
    if cfg.checkpoint is not None and cfg.export.minari is not None:
        raise UserError("export.minari: checkpoint=... exports a policy, and export.minari a dataset; leave one out")
    if cfg.checkpoint is not None:
        return exported_policy(cfg)
    if cfg.export.minari is None:
        raise UserError(
            "stage=export: give checkpoint=<file> to export a policy (agents that do not learn have none), or "
            "export.minari=<id>, such as slaterl/focused_topdown-medium-v0, to export a dataset"
        )
    if cfg.export.onnx:
        raise UserError("export.onnx=true: only a policy (checkpoint=...) can be written as ONNX; leave it out")
    dataset = product_of(cfg, "collect")

    def show(run: Run) -> None:
        dataset.show(run)
        data, metadata = trajectories.load(run.path / trajectories.FILE, num_items=cfg.env.num_items)
        folder = minari.exported(cfg.export.minari, metadata["checksum"])
        if folder is not None:
            note(f"already exported: {folder}")
            return
        folder = minari.export(data, metadata, cfg.export.minari, cfg.env.num_items)
        note(f"exported to {folder}; minari.load_dataset({cfg.export.minari!r}) reads it")

    return replace(dataset, show=show)
