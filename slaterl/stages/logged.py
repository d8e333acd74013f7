"""dataset=log: the dataset that stage=collect makes of a log, and the sizes that all other stages get from it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.config.build import simulates
from slaterl.config.dataset import dataset_spec
from slaterl.config.fits import check_fit
from slaterl.config.logs import SIZES, is_log
from slaterl.console import note, with_interval
from slaterl.data import sessions, trajectories, vocabulary
from slaterl.data.formats.checks import require_package
from slaterl.data.formats.logs import read_log
from slaterl.data.groups import half_width_of_mean
from slaterl.errors import UserError
from slaterl.evaluation.dataset_card import entries_of, write_card
from slaterl.runs.products import Make, Product, find_or_make, product_of
from slaterl.runs.run import Run, versions

LISTED = 10  # items on the card


def logged(cfg: DictConfig) -> Product:
    """Return the dataset of a log, with its card and its items. Naming it reads only the file's fingerprint."""
    dataset = cfg.dataset
    name, spec = dataset_spec(dataset)
    files = ("result.json", trajectories.FILE, vocabulary.FILE, sessions.FILE)
    run = Run(Path(cfg.paths.root), "collect", cfg.env.name, name, spec, products=files)

    def begin() -> Make:
        require_package("polars", "logs", f"dataset.path={dataset.path}")

        def make() -> dict[str, Any]:
            started = time.perf_counter()
            settings = spec["dataset"]
            note(f"reading {dataset.path}")
            log = read_log(dataset.path, settings)
            if dataset_spec(dataset)[1] != spec:
                raise UserError(f"{dataset.path}: changed since the command began; run it again")
            data, items = log.data, log.items
            seconds = time.perf_counter() - started
            told = {"name": "log", **log.about, "trajectories": len(data)}
            log.items.save(run.path)
            log.sessions.save(run.path)
            about = {"dataset": dataset.name, "item_embeddings": items.fingerprint, "items": items.fingerprint}
            about |= {"sessions": log.sessions.fingerprint}
            about |= {"behaviours": [told], "versions": versions()}
            trajectories.save(run.path / trajectories.FILE, data, about)
            _, metadata = trajectories.load(run.path / trajectories.FILE, num_items=len(items))
            write_card(
                run.path,
                data,
                [told],
                None,
                num_items=len(items),
                warnings=log.warnings,
                title=f"the log {log.about['source']}",
                checksum=metadata["checksum"],
                top_items=items.most_shown(LISTED),
            )
            sizes = (len(items), data.slates.shape[2], data.slates.shape[1] - 1)
            return {
                "dataset": dataset.name,
                **dict(zip(SIZES, sizes, strict=True)),
                **entries_of(data, items.fingerprint),
                "return_interval": half_width_of_mean(data.returns, data),
                "checksum": metadata["checksum"],
                "seconds": seconds,
            }

        return make

    return Product(run, cfg, begin, show=_show)


def sized(product: Product, cfg: DictConfig) -> Product:
    """Return the product with the sizes of its log, which is read first if no stage did. Others stay as they are.

    Names of products do not depend on the sizes, so the product keeps its folder.

    Raises:
        UserError: the log cannot be read, or the agent does not fit its sizes.
    """
    if not is_log(cfg.dataset) or simulates(cfg.env) or cfg.stage.name == "collect":
        return product
    log = product_of(cfg, "collect")
    if product.run.finished and not log.run.finished:
        return product
    result = (log.run if log.run.finished else find_or_make(log)).result()
    own = cfg.copy()
    own.env.update({name: result[name] for name in SIZES} | {"items": result["item_embeddings"]})
    check_fit(own)
    return product_of(own, own.stage.name)


def _show(run: Run) -> None:
    result = run.result()
    clicks = with_interval(result["return_mean"], result["return_interval"])
    note(
        f"{result['trajectories']:,} sessions, {result['turns']:,} slates of {result['slate_size']} of "
        f"{result['num_items']:,} items; clicks per session {clicks} (95 %)"
    )
    note(f"card: {run.path / 'card.md'}")
