"""Products: the results of stages, each in its folder, with the inputs that they start from.

A stage is a function from the configuration to a `Product`. Naming a product builds no network and no simulator;
`find_or_make` makes it if it is missing, and its inputs before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from slaterl.paths import CONF
from slaterl.runs.files import write_json
from slaterl.runs.run import Run
from slaterl.runtime import using_threads

Make = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Product:
    """The result of a stage: a folder, its inputs, and how to make it.

    Attributes:
        run: its folder, and everything that determines it.
        cfg: the configuration that makes it.
        begin: builds networks and simulator, and returns the function that makes the product. That function runs once
            the inputs exist, writes its files into the run's folder and returns the entries of result.json. The
            split lets a wrong setting end the command before hours of work on the inputs.
        inputs: products that it starts from, by name.
        show: shows the finished product to the user, whether it was made now or earlier.
    """

    run: Run
    cfg: DictConfig
    begin: Callable[[], Make]
    inputs: Mapping[str, Product] = field(default_factory=dict)
    show: Callable[[Run], None] = lambda run: None


def product_of(cfg: DictConfig, stage: str) -> Product:
    """Return the product of a configuration in a stage, found by the `_target_` of conf/stage/<stage>.yaml."""
    return get_object(OmegaConf.load(CONF / "stage" / f"{stage}.yaml")._target_)(cfg)


def find_or_make(product: Product) -> Run:
    """Make a product and its inputs, each only if it is missing.

    A product that lies in paths.kept is not made either. Inputs are, because that folder holds no checkpoints.

    Raises:
        UserError: a setting is wrong (before any folder is made), or a folder cannot be written.
        Interrupted: on a signal to stop, after the state was saved.
    """
    folder = OmegaConf.select(product.cfg, "paths.kept")
    kept = None if folder is None or product.run.finished else product.run.kept_in(Path(folder))
    if kept is not None:
        product.show(kept)
        return kept
    begun: dict[Path, Make] = {}
    _begin(product, begun)
    return _find_or_make(product, begun)


def _begin(product: Product, begun: dict[Path, Make]) -> None:
    """Begin every missing product; a product that several others start from is begun once."""
    if product.run.finished or product.run.path in begun:
        return
    begun[product.run.path] = product.begin()
    for part in product.inputs.values():
        _begin(part, begun)


def _find_or_make(product: Product, begun: dict[Path, Make]) -> Run:
    run = product.run
    with run.making(product.cfg, {name: part.run for name, part in product.inputs.items()}) as needed:
        if needed:
            for part in product.inputs.values():
                _find_or_make(part, begun)
            make = begun.pop(run.path, None) or product.begin()  # not begun: its files were removed meanwhile
            with using_threads(run.manifest["threads"]):
                write_json(run.path / "result.json", {"stage": run.stage, "env": run.env, **make()})
    product.show(run)
    return run
