"""stage=recommend: the slates that a checkpoint's policy would show next in the sessions of a dataset."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from slaterl.agents.loading import item_numbers, policy_of, reader_of, renumbered
from slaterl.agents.next_slates import next_slates
from slaterl.config.build import precision_spec, settings_of, simulator
from slaterl.config.check import given_keys
from slaterl.config.logs import is_log
from slaterl.console import note, progress
from slaterl.data import recommendations, trajectories
from slaterl.data.formats.checks import require_package
from slaterl.data.sessions import Sessions
from slaterl.data.vocabulary import item_ids
from slaterl.errors import UserError
from slaterl.runs.files import fingerprint_of
from slaterl.runs.products import Make, Product, product_of
from slaterl.runs.run import Run
from slaterl.seeds import stream
from slaterl.stages.elsewhere import refuse_own_parts
from slaterl.training import checkpoints


def recommend(cfg: DictConfig) -> Product:
    """Return the next slates for all sessions of a dataset, as a table in the log's own ids."""
    if cfg.checkpoint is None:
        raise UserError("checkpoint: stage=recommend needs checkpoint=<file>; agents that do not learn have none")
    file, settings = Path(cfg.checkpoint), settings_of(cfg.recommend)
    refuse_own_parts(file, given_keys())
    state = checkpoints.load(file, "agent")
    dataset, content = product_of(cfg, "collect"), fingerprint_of(file)
    agent, step = state["config"]["agent"]["name"], state["learner"]["step"]
    spec = {"checkpoint": content, "dataset": dataset.run.digest, "recommend": settings, **precision_spec(cfg)}
    spec |= {"seed": cfg.seed} if settings["sample"] else {}
    table = f"recommendations.{settings['format']}"
    name = f"{agent}-step{step}-{cfg.dataset.name}"
    run = Run(Path(cfg.paths.root), "recommend", cfg.env.name, name, spec, products=("result.json", table))

    def begin() -> Make:
        require_package("polars", "logs", "stage=recommend")
        env = simulator(cfg)
        loaded = policy_of(state, file, env.device)
        acting = reader_of(loaded, file)
        learned = item_ids(dataset.run.path, env.fingerprint)
        numbers = item_numbers(loaded, env, file, learned)
        shown = learned if numbers is None else loaded.config["item_ids"]

        def make() -> dict[str, Any]:
            started = time.perf_counter()
            folder = dataset.run.path
            data, metadata = trajectories.load(folder / trajectories.FILE, num_items=env.num_items)
            data = renumbered(data, numbers, loaded.env.num_items)
            sessions = Sessions.load(folder, metadata["sessions"]) if is_log(cfg.dataset) else None
            generator = stream(cfg.seed, "recommend", env.device) if settings["sample"] else None
            with progress("recommend", len(data), "sessions") as show:
                slates = next_slates(acting, data, generator=generator, on_progress=show)
            how = {"form": settings["form"], "format": settings["format"]}
            recommendations.write(run.path / table, slates, shown, sessions, **how)
            newcomer = None
            if shown is not None:  # all sessions of a log begin with the same frame
                start = replace(data[:1], lengths=torch.zeros(1, dtype=torch.int32))
                first = next_slates(acting, start, generator=generator)
                newcomer = [shown[item] for item in first[0].tolist()]
            return {
                "agent": agent,
                "step": step,
                "checkpoint": str(file.resolve()),
                "checkpoint_sha256": content,
                "dataset": cfg.dataset.name,
                "dataset_checksum": metadata["checksum"],
                "item_embeddings": env.fingerprint,
                "sessions": len(data),
                "slate_size": slates.shape[1],
                "distinct_items": len(slates.unique()),
                "table": table,
                "new_session": newcomer,
                "seconds": time.perf_counter() - started,
            }

        return make

    return Product(run, cfg, begin, {"dataset": dataset}, _show)


def _show(run: Run) -> None:
    result = run.result()
    shown = f"slates of {result['slate_size']} with {result['distinct_items']:,} different items in all"
    note(f"{result['sessions']:,} sessions, {shown}: {run.path / result['table']}")
    if result["new_session"] is not None:
        note(f"a session without a history would get {', '.join(map(str, result['new_session']))}")
