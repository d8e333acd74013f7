"""stage=pretrain: the ranker on logged data, with its action box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from slaterl.config.build import build_env, make, plain, resolve_device, settings_of
from slaterl.config.fits import is_gems
from slaterl.data import trajectories
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.rankers.gems import GeMS
from slaterl.rankers.pretraining import GeMSPretraining, SlateData
from slaterl.runs.run import Run, write_json
from slaterl.seeds import seeded_weights, stream
from slaterl.stages.log_data import log_data, logged_data_run, source_of
from slaterl.training import checkpoints
from slaterl.training.curves import plot_curves
from slaterl.training.fit import Schedule, fit
from slaterl.training.loggers import make_loggers

CURVES = ["loss/total", "val/loss/total", "loss/slate", "loss/click", "loss/kl", "val/accuracy/slot"]


def ranker_run(cfg: DictConfig, env: TopicRec) -> Run:
    """Where the ranker of this configuration lies, made or not."""
    spec = {
        "logged_data": logged_data_run(cfg, env).digest,
        "ranker": {key: value for key, value in settings_of(cfg.ranker).items() if key != "unique"},  # not of training
        "pretrain": plain(cfg.pretrain),
        "seed": cfg.ranker_seed,
    }
    name = f"{cfg.ranker.name}-seed{cfg.ranker_seed}"
    return Run(Path(cfg.paths.root), "pretrain", env.name, name, spec, products=("result.json", "ranker.ckpt"))


def pretrain(cfg: DictConfig) -> Run:
    """Find or make the ranker, and its logged data before it."""
    if not is_gems(cfg):
        raise UserError(f"ranker={cfg.ranker.name}: there is nothing to pretrain; use ranker=gems")
    device = resolve_device(cfg.device)
    env = build_env(cfg.env, device)
    with seeded_weights(cfg.ranker_seed, "ranker weights"):
        gems = make(cfg.ranker, "ranker", num_items=env.num_items, slate_size=env.slate_size)
    data_run, run = logged_data_run(cfg, env), ranker_run(cfg, env)
    with run.making(cfg, inputs={"logged_data": data_run}) as needed:
        if needed:
            log_data(cfg)
            _make(cfg, gems.to(device), run, data_run)
    return run


def _make(cfg: DictConfig, gems: GeMS, run: Run, data_run: Run) -> None:
    device, seed, settings = gems.center.device, cfg.ranker_seed, cfg.pretrain
    file = data_run.path / "trajectories.safetensors"
    data, metadata = trajectories.load(file, num_items=cfg.env.num_items)
    if cfg.logged_data.source == "dataset":
        # its behaviours lie one after the other; the first trajectories are held out, and span the action box
        data = data[torch.randperm(len(data), generator=stream(seed, "order of the dataset"))]
    config: dict[str, Any] = {"ranker": plain(cfg.ranker), "env": plain(cfg.env)}
    learner = GeMSPretraining(gems, lr=settings.lr, generator=stream(seed, "ranker noise", device)).to(device)
    slates = SlateData(
        data.to(device),
        learner,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        holdout=settings.holdout,
        source=source_of(cfg),
        seed=seed,
    )
    outcome = fit(
        learner,
        slates,
        folder=run.path,
        kind="ranker_training",
        config=config,
        schedule=Schedule(
            max_steps=slates.max_steps,
            val_every_n_steps=slates.steps_per_epoch,
            log_every_n_steps=cfg.log_every_n_steps,
        ),
        validate=lambda: learner.validate(slates.held_out_batches()),
        score="val/loss/total",
        maximise=False,
        loggers=make_loggers(cfg, run),
        title="pretrain GeMS",
    )
    best = checkpoints.load(run.path / "best.ckpt", "ranker_training")
    learner.load_state_dict(best["learner"]["module"])
    first = data[: settings.box_trajectories]
    gems.fit_box(first.slates[:, 1:].flatten(0, 1).to(device), first.clicks[:, 1:].flatten(0, 1).to(device))
    state = {"kind": "ranker", "config": config, "module": gems.state_dict(), "run": run.digest}
    checkpoints.save(run.path / "ranker.ckpt", {**state, "item_embeddings": metadata["item_embeddings"]})
    losses = learner.validate(slates.held_out_batches())
    write_json(
        run.path / "result.json",
        {
            "stage": "pretrain",
            "env": cfg.env.name,
            "item_embeddings": metadata["item_embeddings"],
            "logged_data": data_run.digest,
            "logged_data_checksum": metadata["checksum"],
            "ranker": cfg.ranker.name,
            "ranker_seed": seed,
            **{name.replace("/", "_"): value for name, value in losses.items()},
            "box_half_width_mean": gems.half_width.mean().item(),
            "best_step": outcome["best_step"],
            "steps": slates.max_steps,
            "slates": slates.size * settings.epochs,
            "seconds": outcome["seconds"],
        },
    )
    plot_curves(run.path / "curves.png", run.path / "metrics.csv", CURVES)
