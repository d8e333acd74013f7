"""stage=mf: item embeddings by matrix factorisation of the logged clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.config.build import make_with, plain, resolve_device, settings_of
from slaterl.config.dataset import source_of
from slaterl.data import trajectories
from slaterl.errors import UserError
from slaterl.rankers.matrix_factorization import ClickData, MatrixFactorization
from slaterl.runs.products import Make, Product, product_of
from slaterl.runs.run import Run
from slaterl.seeds import seeded_weights, stream
from slaterl.training import checkpoints
from slaterl.training.curves import plot_curves
from slaterl.training.fit import Schedule, fit
from slaterl.training.loggers import make_loggers

CURVES = ["loss/bpr", "val/loss/bpr", "val/accuracy/pair"]


def mf(cfg: DictConfig) -> Product:
    """Return the item embeddings, which start from the logged data."""
    settings, seed = cfg.item_embeddings, cfg.ranker_seed
    if settings.name != "mf":
        raise UserError(f"item_embeddings={settings.name}: there is nothing to train; use item_embeddings=mf")
    logged = product_of(cfg, "log_data")
    run = Run(
        root=Path(cfg.paths.root),
        stage="mf",
        env=cfg.env.name,
        name=f"{settings.name}-dim{settings.dim}-seed{seed}",
        spec={"logged_data": logged.run.digest, "item_embeddings": settings_of(settings), "seed": seed},
        products=("result.json", "items.ckpt"),
    )

    def begin() -> Make:
        device = resolve_device(cfg.device)

        def make() -> dict[str, Any]:
            data, metadata = trajectories.load(logged.run.path / trajectories.FILE, num_items=cfg.env.num_items)
            with seeded_weights(seed, "item factors"):
                factors = make_with(settings, "item_embeddings", {"num_items": cfg.env.num_items})
                learner = MatrixFactorization(
                    factors,
                    len(data),
                    lr=settings.lr,
                    weight_decay=settings.weight_decay,
                    generator=stream(seed, "negatives", device),
                ).to(device)
            clicks = ClickData(
                data.to(device),
                learner,
                batch_size=settings.batch_size,
                epochs=settings.epochs,
                holdout=settings.holdout,
                source=source_of(cfg),
                seed=seed,
            )
            config = {"item_embeddings": plain(settings), "env": plain(cfg.env)}
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
                validated=learner.VAL_TERMS,
                score="val/loss/bpr",
                maximise=False,
                loggers=make_loggers(cfg, run),
                title="matrix factorisation",
            )
            best = checkpoints.load(run.path / "best.ckpt", "mf_training")
            learner.load_state_dict(best["learner"]["module"])
            items = learner.items.detach().cpu()
            state = {"kind": "items", "config": config, "item_embeddings": items, "run": run.digest}
            checkpoints.save(run.path / "items.ckpt", state)
            plot_curves(run.path / "curves.png", run.path / "metrics.csv", CURVES)
            losses = learner.validate(clicks.held_out, seed)
            return {
                "item_embeddings": metadata["item_embeddings"],
                "logged_data": logged.run.digest,
                "logged_data_checksum": metadata["checksum"],
                "ranker_seed": seed,
                **{name.replace("/", "_"): value for name, value in losses.items()},
                "best_step": outcome["best_step"],
                "steps": clicks.max_steps,
                "clicks": clicks.size * settings.epochs,
                "seconds": outcome["seconds"],
            }

        return make

    return Product(run, cfg, begin, {"logged_data": logged})
