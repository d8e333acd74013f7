"""stage=collect: an offline dataset, from policies in the simulator or from a file, with its card."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.agents.behaviours import collect_behaviours
from slaterl.config.build import env_spec, plain, precision_spec, simulator
from slaterl.config.dataset import (
    BY_RETURN,
    behaviours_of,
    dataset_spec,
    file_of,
    is_foreign,
    needs_online_run,
    online_cfg,
)
from slaterl.config.logs import is_log
from slaterl.console import note, with_interval
from slaterl.data import trajectories
from slaterl.errors import UserError
from slaterl.evaluation.constant_slate import tell_without_search
from slaterl.evaluation.dataset_card import entries_of, reference_returns, write_card
from slaterl.evaluation.medium import medium_checkpoint
from slaterl.runs.products import Make, Product, product_of
from slaterl.runs.run import Run, versions
from slaterl.stages.imported import import_dataset
from slaterl.stages.logged import logged


def collect(cfg: DictConfig) -> Product:
    """Return the dataset. It starts from the online run of its policies, unless it is random or a file."""
    if is_log(cfg.dataset):
        return logged(cfg)
    dataset, root = cfg.dataset, Path(cfg.paths.root)
    name, spec = dataset_spec(dataset)
    spec |= {"env": env_spec(cfg.env), **precision_spec(cfg)}
    behaviours: dict[str, dict[str, Any]] = {}
    online: Product | None = None
    if dataset.name != "file":
        behaviours, online = behaviours_of(dataset), product_of(online_cfg(cfg), "online")
        spec["online"] = online.run.digest  # every card and every normalised score uses the expert
    learned = any(map(needs_online_run, behaviours.values()))
    inputs = {"online": online} if online and learned else {}
    run = Run(root, "collect", cfg.env.name, name, spec, products=("result.json", trajectories.FILE))

    def checkpoint_of(behaviour: dict[str, Any]) -> Path | None:
        if behaviour["checkpoint"] is not None:
            return Path(behaviour["checkpoint"])
        file = file_of(dataset, behaviour["policy"])
        if not online or not file:
            return None
        if file == BY_RETURN:
            return medium_checkpoint(online.run, sampled=behaviour["sample"])
        kept = online.run.path / f"kept-{file}"
        return kept if kept.is_file() else online.run.path / file

    def begin() -> Make:
        env = simulator(cfg)
        if online and learned and not online.run.finished and not dataset.run.train:
            wanted = f"agent={dataset.run.agent} ranker={dataset.run.ranker} seed={dataset.run.seed}"
            raise UserError(
                f"dataset={dataset.name}: its agent is not trained ({online.run.path}); stage=online {wanted} "
                "trains it, and so does dataset.run.train=true"
            )

        def make() -> dict[str, Any]:
            started = time.perf_counter()
            if dataset.name == "file":
                collected = import_dataset(dataset.path, env, cfg.force)
            else:
                checkpoints = {name: checkpoint_of(behaviour) for name, behaviour in behaviours.items()}
                collected = collect_behaviours(dataset, behaviours, checkpoints, env, spec["env"])
            data, told, seconds = collected.data, collected.behaviours, time.perf_counter() - started

            about: dict[str, Any] = {"env": plain(cfg.env), "item_embeddings": env.fingerprint, "behaviours": told}
            about |= {"dataset": dataset.name, "versions": versions(), "actions_of": collected.actions_of}
            trajectories.save(run.path / trajectories.FILE, data.compact(env.num_items), about)
            _, metadata = trajectories.load(run.path / trajectories.FILE, num_items=env.num_items)

            expert = online.run.result()["test_return"] if online and online.run.finished else None
            seed = dataset.run.seed if online else cfg.logged_data.seed
            returns = reference_returns(env, data, collected.ranker, expert, seed, cfg.constant_slate_users)
            elsewhere = f"The reference policies act in {env.name}; ignore them if the file is from elsewhere."
            write_card(
                run.path,
                data,
                told,
                returns,
                num_items=env.num_items,
                warnings=[elsewhere] if is_foreign(dataset) else [],
                title=f"{dataset.name} on {env.name}",
                checksum=metadata["checksum"],
            )
            return {
                "dataset": dataset.name,
                **entries_of(data, env.fingerprint),
                **{f"{name}_return": value for name, value in returns.items()},
                "checksum": metadata["checksum"],
                "seconds": seconds,
            }

        return make

    def show(run: Run) -> None:
        result = run.result()
        returned = with_interval(result["return_mean"], result["return_std"])
        note(f"{result['trajectories']:,} trajectories, return {returned} (standard deviation)")
        note(f"card: {run.path / 'card.md'}")
        tell_without_search(cfg.constant_slate_users, result)

    return Product(run, cfg, begin, inputs, show)
