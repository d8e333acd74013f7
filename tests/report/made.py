"""Runs for reports that were never trained: real folders with real manifests, and numbers to choose."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from slaterl.errors import Interrupted, UserError
from slaterl.runs.files import write_json
from slaterl.runs.run import Run
from tests.helpers import compose_config

COLUMNS = ("step", "loss/critic", "val/return")


@functools.cache
def composed(*overrides: str) -> DictConfig:
    return compose_config("scale=smoke", "device=cpu", "threads=1", *overrides)


def config_of(root: Path, *choices: str, **settings: Any) -> DictConfig:
    """Composed from `choices`; `settings` are put in afterwards, which is quicker ("agent.gamma": 0)."""
    cfg: DictConfig = OmegaConf.merge(composed(*choices), {"paths": {"root": str(root)}})  # type: ignore[assignment]
    for key, value in settings.items():
        OmegaConf.update(cfg, key, value)
    return cfg


@contextlib.contextmanager
def making(cfg: DictConfig) -> Iterator[Path]:
    """What a stage does around its work: within the block the run is running."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    spec = {key: value for key, value in plain.items() if key != "paths"}
    run = Run(Path(cfg.paths.root), cfg.stage.name, cfg.env.name, f"{cfg.agent.name}-seed{cfg.seed}", spec)
    with run.making(cfg, {}):
        yield run.path


def finished(cfg: DictConfig, test: float, curve: tuple[float, ...] = (), **entries: Any) -> Path:
    """A run that ended with the test return `test`; a learning one has the validation returns `curve`."""
    with making(cfg) as folder:
        steps = 20 * len(curve)
        rows = [f"{20 * (i + 1)},0.5,{value}" for i, value in enumerate(curve)]
        if curve:
            # training is logged more often than it is validated
            lines = [",".join(COLUMNS), "10,0.7,", *rows]
            (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
        result = {
            "stage": cfg.stage.name,
            "env": cfg.env.name,
            "agent": cfg.agent.name,
            "ranker": cfg.ranker.name,
            "belief": cfg.belief.name,
            "compared_by": None,
            "seed": cfg.seed,
            "test_users": cfg.test_users,
            "test_return": test,
            "item_embeddings": "0123456789abcdef",
            **({"val_return": max(curve), "steps": steps} if curve else {}),
        }
        write_json(folder / "result.json", result | entries)
    return folder


def failed(cfg: DictConfig, reason: str) -> Path:
    with contextlib.suppress(UserError), making(cfg) as folder:
        raise UserError(reason)
    return folder


def interrupted(cfg: DictConfig) -> Path:
    with contextlib.suppress(Interrupted), making(cfg) as folder:
        raise Interrupted(signal.SIGTERM)
    return folder


def killed(cfg: DictConfig) -> Path:
    """A run whose process was gone before it could say so: its manifest says running, and nobody holds its lock."""
    with making(cfg) as folder:
        pass
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["ended"]
    write_json(folder / "manifest.json", {**manifest, "status": "running"})
    return folder
