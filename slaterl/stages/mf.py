"""stage=mf: item embeddings by matrix factorisation of the logged clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.config.build import make_with, plain, precision_spec, resolve_device, settings_of
from slaterl.config.dataset import source_of
from slaterl.data import trajectories
from slaterl.errors import UserError
from slaterl.rankers.matrix_factorization import ClickData, MatrixFactorization
from slaterl.runs.products import Make, Product, product_of
from slaterl.runs.run import Run
from slaterl.seeds import seeded_weights, stream
from slaterl.stages.epochs import train_epochs
from slaterl.training import checkpoints

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
        spec={
            "logged_data": logged.run.digest,
            "item_embeddings": settings_of(settings),
            **precision_spec(cfg),
            "seed": seed,
        },
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
            found = train_epochs(
                cfg,
                run,
                learner,
                clicks,
                kind="mf_training",
                config=config,
                validate=lambda: learner.validate(clicks.held_out, seed),
                validated=learner.VAL_TERMS,
                score="val/loss/bpr",
                title="matrix factorisation",
                curves=CURVES,
            )
            items = learner.items.detach().cpu()
            state = {"kind": "items", "config": config, "item_embeddings": items, "run": run.digest}
            checkpoints.save(run.path / "items.ckpt", state)
            return {
                "item_embeddings": metadata["item_embeddings"],
                "logged_data": logged.run.digest,
                "logged_data_checksum": metadata["checksum"],
                "ranker_seed": seed,
                **found,
            }

        return make

    return Product(run, cfg, begin, {"logged_data": logged})
