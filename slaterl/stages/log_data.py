"""stage=log_data: slates of the epsilon-oracle and clicks of new users, for pretraining rankers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.config.build import env_spec, plain, simulator
from slaterl.console import note, progress, with_interval
from slaterl.data import trajectories
from slaterl.errors import UserError
from slaterl.evaluation.dataset_card import entries_of
from slaterl.rollout import collect
from slaterl.runs.products import Make, Product, product_of
from slaterl.runs.run import Run
from slaterl.seeds import stream


def log_data(cfg: DictConfig) -> Product:
    """Return the logged data; with logged_data.source=dataset, return the dataset."""
    settings = plain(cfg.logged_data)
    if settings.pop("source") == "dataset":
        return product_of(cfg, "collect")
    run = Run(
        root=Path(cfg.paths.root),
        stage="log_data",
        env=cfg.env.name,
        name=f"epsilon{settings['epsilon']}-{settings['trajectories']}-seed{settings['seed']}",
        spec={"env": env_spec(cfg.env), "logged_data": settings},
        products=("result.json", trajectories.FILE),
    )

    def begin() -> Make:
        env = simulator(cfg)
        if settings["epsilon"] < 1 and not env.fills_oracle_slots:
            raise UserError(
                f"logged_data.epsilon={settings['epsilon']}: env={env.name} has no short-term oracle; "
                "use logged_data.epsilon=1 (random slates)"
            )
        policy = EpsilonOracle(
            epsilon=settings["epsilon"],
            num_items=env.num_items,
            slate_size=env.slate_size,
            generator=stream(settings["seed"], "logging policy", env.device),
        )

        def make() -> dict[str, Any]:
            count, seed = settings["trajectories"], settings["seed"]
            started = time.perf_counter()
            # in float32 (see rollout), so both values of matmul_precision learn from this file
            with progress("log data", count, "trajectories") as show:
                data = collect(
                    policy,
                    env,
                    count,
                    generator=stream(seed, "logged users", env.device),
                    deterministic=False,
                    num_envs=min(settings["num_envs"], count),
                    on_progress=show,
                )
            seconds = time.perf_counter() - started
            behaviour = {"name": "epsilon_oracle", "epsilon": settings["epsilon"], "seed": seed}
            metadata = {"env": plain(cfg.env), "item_embeddings": env.fingerprint, "behaviours": [behaviour]}
            trajectories.save(run.path / trajectories.FILE, data, metadata)
            told = entries_of(data, env.fingerprint)
            mean = with_interval(told["return_mean"], None)
            note(f"logged data: {count:,} trajectories, mean return {mean}, in {seconds:.0f} s")
            return {**told, "seed": seed, "seconds": seconds}

        return make

    return Product(run, cfg, begin)
