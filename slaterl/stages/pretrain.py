"""stage=pretrain: the ranker on logged data, with its action box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.config.build import make as make_object
from slaterl.config.build import plain, precision_spec, pretraining_of, ranker_settings, resolve_device
from slaterl.config.dataset import source_of
from slaterl.config.fits import is_gems
from slaterl.data import trajectories
from slaterl.data.groups import shuffled
from slaterl.errors import UserError
from slaterl.rankers.pretraining import GeMSPretraining, SlateData
from slaterl.runs.products import Make, Product, product_of
from slaterl.runs.run import Run
from slaterl.seeds import seeded_weights, stream
from slaterl.stages.epochs import train_epochs
from slaterl.training import checkpoints

CURVES = ["loss/total", "val/loss/total", "loss/slate", "loss/click", "loss/kl", "val/accuracy/slot"]


def pretrain(cfg: DictConfig) -> Product:
    """Return the pretrained ranker, which starts from the logged data."""
    if not is_gems(cfg):
        raise UserError(f"ranker={cfg.ranker.name}: there is nothing to pretrain; use ranker=gems")
    seed, settings = cfg.ranker_seed, cfg.pretrain
    logged = product_of(cfg, "log_data")
    run = Run(
        root=Path(cfg.paths.root),
        stage="pretrain",
        env=cfg.env.name,
        name=f"{cfg.ranker.name}-seed{seed}",
        spec={
            "logged_data": logged.run.digest,
            # these change how a trained ranker fills slates, not its training
            "ranker": ranker_settings(cfg.ranker, "unique", "temperature"),
            "pretrain": pretraining_of(settings),
            **precision_spec(cfg),
            "seed": seed,
        },
        products=("result.json", "ranker.ckpt"),
    )

    def begin() -> Make:
        device = resolve_device(cfg.device)
        with seeded_weights(seed, "ranker weights"):
            gems = make_object(cfg.ranker, "ranker", num_items=cfg.env.num_items, slate_size=cfg.env.slate_size)
        gems = gems.to(device)
        learner = GeMSPretraining(gems, lr=settings.lr, generator=stream(seed, "ranker noise", device)).to(device)

        def make() -> dict[str, Any]:
            data, metadata = trajectories.load(logged.run.path / trajectories.FILE, num_items=cfg.env.num_items)
            if cfg.logged_data.source == "dataset":
                # A dataset holds one behaviour after the other, but the first trajectories are the held-out ones
                # and span the action box.
                data = data[shuffled(data, stream(seed, "order of the dataset"))]
            slates = SlateData(
                data.to(device),
                learner,
                batch_size=settings.batch_size,
                epochs=settings.epochs,
                holdout=settings.holdout,
                source=source_of(cfg),
                seed=seed,
            )
            config = {"ranker": plain(cfg.ranker), "env": plain(cfg.env)}
            found = train_epochs(
                cfg,
                run,
                learner,
                slates,
                kind="ranker_training",
                config=config,
                validate=lambda: learner.validate(slates.held_out_batches()),
                validated=learner.VAL_TERMS,
                score="val/loss/total",
                title="pretrain GeMS",
                curves=CURVES,
                patience=settings.patience,
                min_delta=settings.min_delta,
            )
            first = data[: settings.box_trajectories]
            gems.fit_box(*(column.to(device) for column in first.shown()))
            state = {"kind": "ranker", "config": config, "module": gems.state_dict(), "run": run.digest}
            checkpoints.save(run.path / "ranker.ckpt", {**state, "item_embeddings": metadata["item_embeddings"]})
            return {
                "item_embeddings": metadata["item_embeddings"],
                "logged_data": logged.run.digest,
                "logged_data_checksum": metadata["checksum"],
                "ranker": cfg.ranker.name,
                "ranker_seed": seed,
                "box_half_width_mean": gems.half_width.mean().item(),
                **found,
                "stopped_early": found["epochs"] < settings.epochs,
            }

        return make

    return Product(run, cfg, begin, {"logged_data": logged})
