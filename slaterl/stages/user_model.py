"""stage=user_model: users learned from a dataset, with a page that says how well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.config.build import plain, precision_spec, resolve_device, settings_of, simulator
from slaterl.config.dataset import source_of_dataset
from slaterl.console import note
from slaterl.data import trajectories
from slaterl.data.vocabulary import item_ids
from slaterl.errors import UserError
from slaterl.runs.files import write_text
from slaterl.runs.products import Make, Product, product_of
from slaterl.runs.run import Run
from slaterl.seeds import seeded_weights, stream
from slaterl.training import checkpoints
from slaterl.training.curves import plot_curves
from slaterl.training.fit import Schedule, fit
from slaterl.training.loggers import make_loggers
from slaterl.user_models.coverage import coverage_of
from slaterl.user_models.ensemble import Ensemble, Sessions, members_of, sessions_of
from slaterl.user_models.page import as_markdown, draw, verdict
from slaterl.user_models.report import report
from slaterl.user_models.saved import FILE, build_member, save_user_model

CURVES = [*Ensemble.TERMS, *Ensemble.VAL_TERMS]


def user_model(cfg: DictConfig) -> Product:
    """Return the user model, which starts from its dataset."""
    dataset, settings = product_of(cfg, "collect"), plain(cfg.user_training)
    seed = settings["seed"]
    spec = {"dataset": dataset.run.digest, "user_model": settings_of(cfg.user_model), "user_training": settings}
    run = Run(
        root=Path(cfg.paths.root),
        stage="user_model",
        env=cfg.env.name,
        name=f"{cfg.user_model.name}-{cfg.dataset.name}-seed{seed}",
        spec=spec | precision_spec(cfg),
        products=("result.json", FILE),
    )

    def begin() -> Make:
        env, device = simulator(cfg), resolve_device(cfg.device)
        if not env.reward_is_clicks:
            raise UserError(f"stage=user_model: it predicts clicks, but env={env.name} pays another reward")

        def make() -> dict[str, Any]:
            recorded, metadata = trajectories.load(dataset.run.path / trajectories.FILE, num_items=env.num_items)
            data = sessions_of(recorded).to(device)
            sizes = {"num_items": env.num_items, "slate_size": env.slate_size, "leaves": data.lengths is not None}
            with seeded_weights(seed, "user models"):
                members = [build_member(plain(cfg.user_model), sizes) for _ in range(settings["members"])]
            learner = Ensemble(members, lr=settings["lr"], patience=settings["patience"]).to(device)
            sessions = Sessions(
                data,
                learner,
                holdout=settings["holdout"],
                max_steps=settings["max_steps"],
                batch_size=settings["batch_size"],
                seed=seed,
                source=source_of_dataset(cfg),
            )
            learner.start_at(sessions.training)
            about = {"items": env.fingerprint, "dataset": dataset.run.digest, "episode_length": env.episode_length}
            ids = item_ids(dataset.run.path, env.fingerprint)
            config = {"user_model": plain(cfg.user_model), **sizes, **about, "item_ids": ids}
            outcome = fit(
                learner,
                sessions,
                folder=run.path,
                kind="user_model_training",
                config=config,
                schedule=Schedule(
                    max_steps=settings["max_steps"],
                    val_every_n_steps=settings["val_every_n_steps"],
                    log_every_n_steps=settings["val_every_n_steps"],
                    patience=settings["patience"],
                ),
                validate=lambda: learner.validate(sessions.held_out),
                validated=learner.VAL_TERMS,
                score="val/loss/total",
                maximise=False,
                loggers=make_loggers(cfg, run),
                title=f"user model of {cfg.dataset.name} on {env.name}",
            )
            best = checkpoints.load(run.path / "best.ckpt", "user_model_training")["learner"]
            learner.load_state_dict(best["module"])
            plot_curves(run.path / "curves.png", run.path / "metrics.csv", CURVES)
            seen = coverage_of(sessions.training, env.num_items, settings["covered"], sessions.held_out)
            least, first = settings["covered"], stream(seed, "first frames")
            save_user_model(run.path / FILE, members_of(learner), data, seen, least, config, first)
            found = {"env": env.name, "dataset": cfg.dataset.name, **settings}
            found |= report(learner, sessions, seen, env.num_items)
            draw(found, run.path / "user_model.png")
            write_text(run.path / "user_model.md", as_markdown(found))
            return {
                **found,
                "item_embeddings": env.fingerprint,
                "dataset_run": dataset.run.digest,
                "dataset_checksum": metadata["checksum"],
                "best_step": outcome["best_step"],
                "steps": learner.step,
                "seconds": outcome["seconds"],
            }

        return make

    return Product(run, cfg, begin, {"dataset": dataset}, _show)


def _show(run: Run) -> None:
    note(verdict(run.result()).replace("**", ""))
    note(f"page: {run.path / 'user_model.md'}")
