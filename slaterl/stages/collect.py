"""stage=collect: an offline dataset, from policies in the simulator or from a file, with its card."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.agents.behaviours import collect_behaviours
from slaterl.config.build import env_spec, plain, simulator
from slaterl.config.dataset import behaviours_of, file_of, is_foreign, needs_online_run, online_cfg
from slaterl.console import note
from slaterl.data import card, trajectories
from slaterl.errors import UserError
from slaterl.evaluation.evaluate import anchors, constant_slate_return
from slaterl.runs.files import fingerprint_of, whole_file, write_json
from slaterl.runs.products import Make, Product, product_of
from slaterl.runs.run import Run, versions
from slaterl.stages.imported import import_dataset, source_fingerprint

ANCHOR_USERS = 500


def collect(cfg: DictConfig) -> Product:
    """The dataset; it starts from the online run of its policies, unless it is random or a file."""
    dataset, spec, inputs = cfg.dataset, {"env": env_spec(cfg.env)}, {}
    settings = plain(dataset)
    behaviours: dict[str, dict[str, Any]] = {}
    online: Product | None = None
    if dataset.name == "file":
        source = settings.pop("path")
        spec |= {"dataset": settings, "file": source_fingerprint(source)}
        name = Path(source.removeprefix("minari:")).stem.replace("/", "-")
    else:
        behaviours, online = behaviours_of(dataset), product_of(online_cfg(cfg), "online")
        # all of them by their digest: the expert is in every card and in every normalised score
        settings = {key: value for key, value in settings.items() if key not in ("run", "behaviour")}
        settings["behaviours"] = {key: _spec_of(dataset, behaviour) for key, behaviour in behaviours.items()}
        spec |= {"dataset": settings, "online": online.run.digest}
        name = f"{settings['trajectories']}-seed{settings['seed']}"
        inputs = {"online": online} if any(map(needs_online_run, behaviours.values())) else {}
    run = Run(
        root=Path(cfg.paths.root),
        stage="collect",
        env=cfg.env.name,
        name=f"{dataset.name}-{name}",
        spec=spec,
        products=("result.json", trajectories.FILE),
    )

    def checkpoint_of(behaviour: dict[str, Any]) -> Path | None:
        if behaviour["checkpoint"] is not None:
            return Path(behaviour["checkpoint"])
        file = file_of(dataset, behaviour["policy"])
        return None if file is None or online is None else online.run.path / file

    def begin() -> Make:
        env = simulator(cfg)
        if inputs and not inputs["online"].run.finished and not dataset.run.train:
            wanted = f"agent={dataset.run.agent} ranker={dataset.run.ranker} seed={dataset.run.seed}"
            raise UserError(
                f"dataset={dataset.name}: its agent is not trained ({inputs['online'].run.path}); stage=online "
                f"{wanted} trains it, or dataset.run.train=true"
            )

        def make() -> dict[str, Any]:
            started = time.perf_counter()
            ranker = None
            if dataset.name == "file":
                data, told = import_dataset(dataset.path, env, cfg.force)
            else:
                checkpoints = {name: checkpoint_of(behaviour) for name, behaviour in behaviours.items()}
                data, told, ranker = collect_behaviours(dataset, behaviours, checkpoints, env, env_spec(cfg.env, env))
            seconds = time.perf_counter() - started
            metadata = {"env": plain(cfg.env), "item_embeddings": env.fingerprint, "behaviours": told}
            metadata |= {"dataset": dataset.name, "versions": versions()}
            trajectories.save(run.path / trajectories.FILE, data.compact(env.num_items), metadata)
            _, metadata = trajectories.load(run.path / trajectories.FILE, num_items=env.num_items)

            # the seed of the expert, so that the anchors meet its test users
            seed = dataset.run.seed if online else cfg.logged_data.seed
            known = anchors(env, ANCHOR_USERS, seed)
            expert = online.run.result()["test_return"] if online and online.run.finished else None
            reached: dict[str, float | None] = {
                "random": known["random_return"],
                "constant_slate": constant_slate_return(env, ranker, ANCHOR_USERS, seed),
                "short_term_oracle": known["oracle_return"],
                "expert": expert,
            }
            described = card.describe(data, told, num_items=env.num_items, anchors=reached)
            if is_foreign(dataset):
                described["warnings"].append(
                    f"The anchors are of {env.name}; they mean nothing if the file is from elsewhere."
                )
            described |= {"title": f"{dataset.name} on {env.name}", "checksum": metadata["checksum"]}
            write_json(run.path / "card.json", described)
            with whole_file(run.path / "card.md") as partial:
                partial.write_text(card.as_markdown(described), encoding="utf-8")
            card.draw(described, run.path / "card.png")
            for warning in described["warnings"]:
                note(f"warning: {warning}")
            return {
                "dataset": dataset.name,
                "item_embeddings": env.fingerprint,
                "trajectories": len(data),
                "turns": data.rewards.numel(),
                "return_mean": data.returns.mean().item(),
                "return_std": data.returns.std().item() if len(data) > 1 else 0.0,
                **{f"{name}_return": value for name, value in reached.items()},
                "checksum": metadata["checksum"],
                "seconds": seconds,
            }

        return make

    return Product(run, cfg, begin, inputs, _show)


def _spec_of(dataset: DictConfig, behaviour: dict[str, Any]) -> dict[str, Any]:
    """A behaviour with the content of its checkpoint, or the name of the online run's file, if it has either."""
    spec = {key: value for key, value in behaviour.items() if key != "checkpoint"}
    if behaviour["checkpoint"] is not None:
        if not Path(behaviour["checkpoint"]).is_file():
            raise UserError(f"dataset.behaviour.checkpoint={behaviour['checkpoint']}: no such file")
        spec["checkpoint"] = fingerprint_of(Path(behaviour["checkpoint"]))
    elif needs_online_run(behaviour):
        spec["checkpoint"] = file_of(dataset, behaviour["policy"])
    return spec


def _show(run: Run) -> None:
    result = run.result()
    note(f"{result['trajectories']:,} trajectories, return {result['return_mean']:.1f} ± {result['return_std']:.1f}")
    note(f"card: {run.path / 'card.md'}")
