"""evaluation=fqe: returns of checkpoints, estimated from a dataset, next to their returns in the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import Tensor

from slaterl.agents.base import Agent, BeliefPolicy, LatentAgent
from slaterl.agents.loading import item_numbers, load_policy, renumbered
from slaterl.config.build import plain, simulator
from slaterl.console import progress, table, with_interval
from slaterl.data import trajectories
from slaterl.data.vocabulary import item_ids
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.evaluation.compared import cells, checkpoints_in, correlated, draw, row_of, tell_correlation
from slaterl.evaluation.fqe import fitted_q_evaluation
from slaterl.runs.files import fingerprint_of
from slaterl.runs.products import Make, Product, product_of
from slaterl.runs.run import Run
from slaterl.training import checkpoints


def estimates(cfg: DictConfig) -> Product:
    """Return the estimates of `checkpoint`: a file, or the folder of a run with all its kept checkpoints.

    If the dataset was collected in the simulator, each checkpoint is also tested there. The rank correlation
    over the checkpoints shows how far to trust the estimates.
    """
    files = checkpoints_in(cfg.checkpoint, cfg.evaluation)
    dataset = product_of(cfg, "collect")
    first = checkpoints.load(files[0], "agent")["config"]["agent"]["name"]
    spec = {"dataset": dataset.run.digest, "fqe": plain(cfg.fqe), "seed": cfg.seed, "users": cfg.test_users}
    spec["checkpoints"] = [fingerprint_of(file) for file in files]
    name = f"fqe-{first}-{cfg.dataset.name}-seed{cfg.seed}"
    run = Run(Path(cfg.paths.root), "evaluate", cfg.env.name, name, spec, products=("result.json",))

    def begin() -> Make:
        env = simulator(cfg)
        agents = {file: _agent(file, env, dataset.run.path) for file in files}
        return lambda: _make(cfg, env, run, dataset.run, agents)

    return Product(run, cfg, begin, {"dataset": dataset}, _show)


class _Loaded(NamedTuple):
    """An agent of a checkpoint, its name and step, and the numbers of its items, see `item_numbers`."""

    name: str
    step: int
    agent: LatentAgent
    num_items: int
    numbers: Tensor | None


def _agent(file: Path, env: Env, dataset: Path) -> _Loaded:
    """Load the agent of a checkpoint.

    Args:
        dataset: folder of the data, which has the ids of a log's items.

    Raises:
        UserError: the agent does not act in the latent space of a ranker, or learned on other items.
    """
    loaded = load_policy(file, env.device)
    agent: Agent | None = loaded.policy.agent if isinstance(loaded.policy, BeliefPolicy) else None
    name = loaded.config["agent"]["name"]
    if not isinstance(agent, LatentAgent) or agent.sees_hidden or agent.REFINES:
        raise UserError(f"{file}: evaluation=fqe needs an agent that shows its ranker's slates, unlike agent={name}")
    numbers = item_numbers(loaded, env, file, item_ids(dataset, env.fingerprint))
    return _Loaded(name, loaded.step, agent, loaded.env.num_items, numbers)


def _make(cfg: DictConfig, env: Env, run: Run, dataset: Run, agents: Mapping[Path, _Loaded]) -> dict[str, Any]:
    simulated = env.simulates and cfg.dataset.name != "file"
    recorded, metadata = trajectories.load(dataset.path / trajectories.FILE, num_items=env.num_items)
    recorded = recorded.to(env.device)
    rows: list[dict[str, Any]] = []
    for file, (name, step, agent, num_items, numbers) in agents.items():
        data = renumbered(recorded, numbers, num_items)
        with progress(f"fqe of {file.name}", cfg.fqe.updates, "updates") as show:
            estimate = fitted_q_evaluation(
                agent, data, num_items=num_items, **plain(cfg.fqe), seed=cfg.seed, on_progress=show
            )
        found = {"estimate": estimate.mean_return, "interval": estimate.interval, "loss": estimate.loss}
        rows.append(row_of(file.name, name, step, found, agent.policy(), env if simulated else None, cfg))
    correlation = correlated(rows)
    if simulated and len(rows) > 2:
        draw(run.path / "fqe.png", rows, correlation["rank_correlation"], "fitted Q evaluation")
    return {
        "evaluation": "fqe",
        "dataset": cfg.dataset.name,
        "seed": cfg.seed,
        "dataset_checksum": metadata["checksum"],
        "dataset_return": dataset.result()["return_mean"],
        **correlation,
        "checkpoints": rows,
        "item_embeddings": env.fingerprint,
    }


def _show(run: Run) -> None:
    result = run.result()
    mean = with_interval(result["dataset_return"], None)
    title = f"fitted Q evaluation on {result['dataset']} data (mean return {mean})"
    table(title, ["checkpoint", "step", "estimate", "simulator"], list(map(cells, result["checkpoints"])))
    tell_correlation(result)
