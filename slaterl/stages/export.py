"""stage=export: a dataset for other libraries, in Minari's format."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig

from slaterl.console import note
from slaterl.data import trajectories
from slaterl.data.formats import minari
from slaterl.errors import UserError
from slaterl.runs.products import Product, product_of
from slaterl.runs.run import Run


def export(cfg: DictConfig) -> Product:
    """Return the dataset. Showing it writes it to the folder where `minari.load_dataset(export.minari)` finds it."""
    if cfg.export.minari is None:
        raise UserError("export.minari: give the id of the Minari dataset, such as slaterl/focused_topdown-medium-v0")
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
