"""evaluation=ips: the clicks of checkpoints, estimated from a log by its propensities."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from slaterl.agents.base import Agent
from slaterl.agents.loading import item_numbers, load_policy, reader_of, renumbered
from slaterl.config.build import plain, precision_spec, simulator
from slaterl.console import note, progress, table
from slaterl.data import trajectories
from slaterl.data.vocabulary import item_ids
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.evaluation.compared import checkpoints_in
from slaterl.evaluation.propensities import estimates, shares
from slaterl.runs.files import fingerprint_of
from slaterl.runs.products import Make, Product, product_of
from slaterl.runs.run import Run
from slaterl.seeds import stream


def by_propensities(cfg: DictConfig) -> Product:
    """Return the estimates of `checkpoint`, or of all checkpoints in a run's folder."""
    files, dataset = checkpoints_in(cfg.checkpoint, cfg.evaluation), product_of(cfg, "collect")
    spec: dict[str, Any] = {"dataset": dataset.run.digest, "ips": plain(cfg.ips), "seed": cfg.seed}
    spec |= {"checkpoints": [fingerprint_of(file) for file in files], **precision_spec(cfg)}
    name = f"ips-{cfg.dataset.name}-seed{cfg.seed}"
    run = Run(Path(cfg.paths.root), "evaluate", cfg.env.name, name, spec, products=("result.json",))

    def begin() -> Make:
        env = simulator(cfg)
        agents = {file: _agent(file, env, dataset.run.path) for file in files}

        def make() -> dict[str, Any]:
            data, metadata = trajectories.load(dataset.run.path / trajectories.FILE, num_items=env.num_items)
            if data.propensity is None:
                column = "name their column with dataset.columns.propensity=<column>"
                raise UserError(f"evaluation=ips: dataset={cfg.dataset.name} holds no propensities; {column}")
            rows = []
            with progress("estimates by propensities", len(agents), "policies") as show:
                for file, (agent, about, numbers, num_items) in agents.items():
                    own = renumbered(data, numbers, num_items)
                    for sampled in (False, True) if agent.stochastic else (False,):
                        draw = stream(cfg.seed, "ips", env.device) if sampled else None
                        found = shares(agent, own, draws=cfg.ips.draws, generator=draw)
                        settings = {"resamples": cfg.ips.resamples, "generator": stream(cfg.seed, "bootstrap")}
                        by = {name: asdict(one) for name, one in estimates(data, *found, **settings).items()}
                        rows.append({"checkpoint": file.name, **about, "sampled": sampled, "estimates": by})
                    show(len({row["checkpoint"] for row in rows}))
            return {
                "evaluation": "ips",
                "dataset": cfg.dataset.name,
                "dataset_checksum": metadata["checksum"],
                "dataset_return": dataset.run.result()["return_mean"],
                "seed": cfg.seed,
                "checkpoints": rows,
                "item_embeddings": env.fingerprint,
            }

        return make

    return Product(run, cfg, begin, {"dataset": dataset}, _show)


def _agent(file: Path, env: Env, dataset: Path) -> tuple[Agent, dict[str, Any], Tensor | None, int]:
    """Load the agent of a checkpoint, its name and step, the numbers of its items, and their count.

    Args:
        dataset: folder of the data, which has the ids of a log's items.

    Raises:
        UserError: it reads the simulator's hidden state, or learned on other items.
    """
    loaded = load_policy(file, env.device)
    agent = reader_of(loaded, file)
    numbers = item_numbers(loaded, env, file, item_ids(dataset, env.fingerprint))
    about = {"agent": loaded.config["agent"]["name"], "step": loaded.step}
    return agent, about, numbers, loaded.env.num_items


def _show(run: Run) -> None:
    result, rows = run.result(), []
    warnings: dict[tuple[str, str], list[str]] = {}
    for row in result["checkpoints"]:
        policy = row["checkpoint"].removesuffix(".ckpt") + (", sampled" if row["sampled"] else "")
        for name, one in row["estimates"].items():
            known = one["value"] is not None
            shown = (f"{one['value']:.3g}", f"{one['low']:.3g} to {one['high']:.3g}") if known else ("", "")
            rows.append([policy, name.upper(), *shown, f"{one['slates']:,.0f}", f"{one['weight']:.2f}"])
            if one["warning"]:  # estimators often share it
                warnings.setdefault((policy, one["warning"]), []).append(name.upper())
    title = f"clicks per session by propensities of {result['dataset']} data (the log: {result['dataset_return']:.3g})"
    table(title, ["policy", "by", "estimate", "95 %", "slates", "weight"], rows)
    for (policy, warning), names in warnings.items():
        note(f"warning: {policy}, {', '.join(names)}: {warning}")
