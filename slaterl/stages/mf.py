"""stage=mf: item embeddings by matrix factorisation of the logged clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from slaterl.config.build import build_env, make_with, plain, resolve_device, settings_of
from slaterl.data import trajectories
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.rankers.matrix_factorization import ClickData, MatrixFactorization
from slaterl.runs.run import Run, write_json
from slaterl.seeds import seeded_weights, stream
from slaterl.stages.log_data import log_data, logged_data_run, source_of
from slaterl.training import checkpoints
from slaterl.training.curves import plot_curves
from slaterl.training.fit import Schedule, fit
from slaterl.training.loggers import make_loggers


def mf_run(cfg: DictConfig, env: TopicRec) -> Run:
    """Where the item embeddings of this configuration lie, made or not."""
    spec = {
        "logged_data": logged_data_run(cfg, env).digest,
        "item_embeddings": settings_of(cfg.item_embeddings),
        "seed": cfg.ranker_seed,
    }
    name = f"{cfg.item_embeddings.name}-dim{cfg.item_embeddings.dim}-seed{cfg.ranker_seed}"
    return Run(Path(cfg.paths.root), "mf", env.name, name, spec, products=("result.json", "items.ckpt"))


def mf(cfg: DictConfig) -> Run:
    """Find or make the item embeddings, and their logged data before them."""
    if cfg.item_embeddings.name != "mf":
        raise UserError(
            f"item_embeddings={cfg.item_embeddings.name}: there is nothing to train; use item_embeddings=mf"
        )
    env = build_env(cfg.env, resolve_device(cfg.device))
    data_run, run = logged_data_run(cfg, env), mf_run(cfg, env)
    with run.making(cfg, inputs={"logged_data": data_run}) as needed:
        if needed:
            log_data(cfg)
            _make(cfg, env, run, data_run)
    return run


def item_factors(run: Run) -> Tensor:
    """The product of a finished run, [N, E]."""
    return checkpoints.load(run.path / "items.ckpt", "items")["item_embeddings"]


def _make(cfg: DictConfig, env: TopicRec, run: Run, data_run: Run) -> None:
    settings, seed = cfg.item_embeddings, cfg.ranker_seed
    data, metadata = trajectories.load(data_run.path / "trajectories.safetensors", num_items=env.num_items)
    config: dict[str, Any] = {"item_embeddings": plain(settings), "env": plain(cfg.env)}
    with seeded_weights(seed, "item factors"):
        factors = make_with(settings, "item_embeddings", {"num_items": env.num_items})
        learner = MatrixFactorization(
            factors,
            len(data),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            generator=stream(seed, "negatives", env.device),
        ).to(env.device)
    clicks = ClickData(
        data.to(env.device),
        learner,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        holdout=settings.holdout,
        source=source_of(cfg),
        seed=seed,
    )
    outcome = fit(
        learner,
        clicks,
        folder=run.path,
        kind="mf_training",
        config=config,
        schedule=Schedule(
            max_steps=clicks.max_steps,
            val_every_n_steps=clicks.steps_per_epoch,
            log_every_n_steps=cfg.log_every_n_steps,
        ),
        validate=lambda: learner.validate(clicks.held_out, seed),
        score="val/loss/bpr",
        maximise=False,
        loggers=make_loggers(cfg, run),
        title="matrix factorisation",
    )
    best = checkpoints.load(run.path / "best.ckpt", "mf_training")
    learner.load_state_dict(best["learner"]["module"])
    found = {name.replace("/", "_"): value for name, value in learner.validate(clicks.held_out, seed).items()}
    state = {"kind": "items", "config": config, "item_embeddings": learner.items.detach().cpu(), "run": run.digest}
    checkpoints.save(run.path / "items.ckpt", state)
    write_json(
        run.path / "result.json",
        {
            "stage": "mf",
            "env": env.name,
            "item_embeddings": env.fingerprint,
            "logged_data": data_run.digest,
            "logged_data_checksum": metadata["checksum"],
            "ranker_seed": seed,
            **found,
            "best_step": outcome["best_step"],
            "steps": clicks.max_steps,
            "clicks": clicks.size * settings.epochs,
            "seconds": outcome["seconds"],
        },
    )
    plot_curves(run.path / "curves.png", run.path / "metrics.csv", ["loss/bpr", "val/loss/bpr", "val/accuracy/pair"])
