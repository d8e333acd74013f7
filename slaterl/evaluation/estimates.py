"""evaluation=fqe: returns of checkpoints, estimated from a dataset, next to their returns in the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import DictConfig
from scipy import stats
from torch import Tensor

from slaterl.agents.base import Agent, BeliefPolicy, LatentAgent
from slaterl.agents.loading import item_numbers, load_policy, renumbered
from slaterl.config.build import plain, simulator
from slaterl.console import note, progress, table, with_interval
from slaterl.data import trajectories
from slaterl.data.vocabulary import item_ids
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.evaluation.evaluate import evaluate
from slaterl.evaluation.fqe import fitted_q_evaluation
from slaterl.runs.files import fingerprint_of, whole_file
from slaterl.runs.products import Make, Product, product_of
from slaterl.runs.run import Run
from slaterl.training import checkpoints

FEWEST = 5  # distinct policies for a rank correlation


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


def checkpoints_in(given: str | None, evaluation: str) -> list[Path]:
    """Return the checkpoint, or the checkpoints in a run's folder in the order of their steps."""
    if given is None:
        raise UserError(f"checkpoint: evaluation={evaluation} needs checkpoint=<a checkpoint, or the folder of a run>")
    if not Path(given).is_dir():
        return [Path(given)]
    steps = sorted(Path(given).glob("step*.ckpt"), key=lambda file: int(file.stem.removeprefix("step")))
    files = [*steps, *Path(given).glob("best.ckpt")]
    if not files:
        raise UserError(f"checkpoint={given}: no checkpoints in this folder")
    return files


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
        row = {"checkpoint": file.name, "agent": name, "step": step, "estimate": estimate.mean_return}
        row |= {"interval": estimate.interval, "loss": estimate.loss, "simulated": None, "simulated_interval": None}
        if simulated:
            served = evaluate(agent.policy(), env, cfg.test_users, cfg.seed, "test")
            row |= {"simulated": served.mean_return, "simulated_interval": served.interval}
        rows.append(row)
    correlation = rank_correlation(rows) if simulated else None
    if simulated and len(rows) > 2:
        draw(run.path / "fqe.png", rows, correlation, "fitted Q evaluation")
    return {
        "evaluation": "fqe",
        "dataset": cfg.dataset.name,
        "seed": cfg.seed,
        "dataset_checksum": metadata["checksum"],
        "dataset_return": dataset.result()["return_mean"],
        "rank_correlation": correlation,
        "checkpoints": rows,
        "item_embeddings": env.fingerprint,
    }


def rank_correlation(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return Spearman's correlation of estimate and simulator over at least five distinct policies; else None."""
    # best.ckpt often equals another checkpoint; the same policy counts as one point
    points = {(row["estimate"], row["simulated"]) for row in rows}
    if len(points) < FEWEST:
        return None
    found = stats.spearmanr(*zip(*points, strict=True)).statistic
    return float(found) if found == found else None  # NaN if all are equal


def draw(path: Path, rows: Sequence[Mapping[str, Any]], correlation: float | None, by: str) -> None:
    """Draw estimates over returns in the simulator, as PNG. `by` names the estimator."""
    figure = Figure(figsize=(5.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    simulated, estimates = ([row[key] for row in rows] for key in ("simulated", "estimate"))
    bars = [[row[key] for row in rows] for key in ("simulated_interval", "interval")]
    axis.errorbar(simulated, estimates, xerr=bars[0], yerr=bars[1], fmt="o", capsize=2, linewidth=1)
    for row in rows:
        label = row["checkpoint"].removesuffix(".ckpt")
        axis.annotate(label, (row["simulated"], row["estimate"]), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axis.axline((simulated[0], simulated[0]), slope=1, color="grey", linewidth=0.8, linestyle="--")
    axis.set_xlabel("return in the simulator (clicks per episode)")
    axis.set_ylabel(f"return by {by}")
    told = "" if correlation is None else f", rank correlation {correlation:.2f}"
    axis.set_title(f"{rows[0]['agent']}, {len(rows)} policies{told}", fontsize=10)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _show(run: Run) -> None:
    result = run.result()
    rows = []
    for row in result["checkpoints"]:
        shown = "" if row["simulated"] is None else with_interval(row["simulated"], row["simulated_interval"])
        rows.append([row["checkpoint"], f"{row['step']:,}", with_interval(row["estimate"], row["interval"]), shown])
    mean = with_interval(result["dataset_return"], None)
    title = f"fitted Q evaluation on {result['dataset']} data (mean return {mean})"
    table(title, ["checkpoint", "step", "estimate", "simulator"], rows)
    if result["rank_correlation"] is not None:
        note(f"rank correlation of estimate and simulator over the checkpoints: {result['rank_correlation']:.2f}")
