"""stage=evaluate evaluation=fqe: what checkpoints would return, from a dataset alone, beside the simulator's word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import DictConfig
from scipy import stats

from slaterl.agents.base import Agent, BeliefPolicy, LatentAgent
from slaterl.agents.loading import load_policy
from slaterl.config.build import build_env, plain, resolve_device
from slaterl.console import note, progress, table
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.evaluation.evaluate import evaluate
from slaterl.evaluation.fqe import fitted_q_evaluation
from slaterl.runs.files import fingerprint_of, whole_file
from slaterl.runs.run import Run, write_json
from slaterl.stages.collect import collect, dataset_run, load_dataset


def fqe(cfg: DictConfig) -> Run:
    """Find or make the estimates of `checkpoint`: a file, or a run's folder, of which all kept checkpoints are taken.

    Where the dataset was collected in the simulator, each is also served to the test users there, and the rank
    correlation of the two over the checkpoints tells what the estimates are worth.
    """
    env = build_env(cfg.env, resolve_device(cfg.device))
    files = _checkpoints(cfg.checkpoint)
    agents = {file: _agent(file, env) for file in files}
    dataset = dataset_run(cfg, env)
    simulated = cfg.dataset.name != "file"
    spec = {"dataset": dataset.digest, "fqe": plain(cfg.fqe), "seed": cfg.seed, "users": cfg.test_users}
    spec["checkpoints"] = [fingerprint_of(file) for file in files]
    name = f"fqe-{next(iter(agents.values()))[0]}-{cfg.dataset.name}-seed{cfg.seed}"
    run = Run(Path(cfg.paths.root), "evaluate", env.name, name, spec, products=("result.json",))
    with run.making(cfg, inputs={"dataset": dataset}) as needed:
        if needed:
            collect(cfg)
            _make(cfg, env, run, dataset, agents, simulated)
    _show(run, simulated)
    return run


def _checkpoints(given: str | None) -> list[Path]:
    """The checkpoint, or those of a run's folder in the order of their steps."""
    if given is None:
        raise UserError("checkpoint: evaluation=fqe needs checkpoint=<a checkpoint, or the folder of a run>")
    if not Path(given).is_dir():
        return [Path(given)]
    steps = sorted(Path(given).glob("step*.ckpt"), key=lambda file: int(file.stem.removeprefix("step")))
    files = [*steps, *Path(given).glob("best.ckpt")]
    if not files:
        raise UserError(f"checkpoint={given}: no checkpoints in this folder")
    return files


def _agent(file: Path, env: TopicRec) -> tuple[str, int, LatentAgent]:
    """Name, step and agent of a checkpoint.

    Raises:
        UserError: it does not act in the latent space of a ranker, or learned on other items.
    """
    loaded = load_policy(file, env.device)
    agent: Agent | None = loaded.policy.agent if isinstance(loaded.policy, BeliefPolicy) else None
    name = loaded.config["agent"]["name"]
    if not isinstance(agent, LatentAgent) or agent.sees_hidden or agent.REFINES:
        raise UserError(f"{file}: agent={name} has no actions of a ranker on a belief, which evaluation=fqe compares")
    if loaded.env.fingerprint != env.fingerprint:
        raise UserError(
            f"{file}: learned on the item embeddings {loaded.env.fingerprint}, env={env.name} has {env.fingerprint}"
        )
    if loaded.env.slate_size != env.slate_size:
        sizes = f"env.slate_size is {loaded.env.slate_size} there, {env.slate_size} here"
        raise UserError(f"{file}: learned in another environment: {sizes}")
    return name, loaded.step, agent


def _make(
    cfg: DictConfig,
    env: TopicRec,
    run: Run,
    dataset: Run,
    agents: dict[Path, tuple[str, int, LatentAgent]],
    simulated: bool,
) -> None:
    recorded, metadata = load_dataset(dataset, env)
    recorded = recorded.to(env.device)
    rows: list[dict[str, Any]] = []
    for file, (name, step, agent) in agents.items():
        with progress(f"fqe of {file.name}", cfg.fqe.updates, "updates") as show:
            estimate = fitted_q_evaluation(
                agent, recorded, num_items=env.num_items, **plain(cfg.fqe), seed=cfg.seed, on_progress=show
            )
        row = {"checkpoint": file.name, "agent": name, "step": step, "estimate": estimate.mean_return}
        row |= {"interval": estimate.interval, "loss": estimate.loss, "simulated": None, "simulated_interval": None}
        if simulated:
            served = evaluate(agent.policy(), env, cfg.test_users, cfg.seed, "test")
            row |= {"simulated": served.mean_return, "simulated_interval": served.interval}
        rows.append(row)
    correlation = None
    # best.ckpt is often one of the others: the same policy is one point
    points = {(row["estimate"], row["simulated"]) for row in rows}
    if simulated and len(points) > 2:
        found = stats.spearmanr(*zip(*points, strict=True)).statistic
        correlation = float(found) if found == found else None  # NaN where all are equal
        _draw(run.path / "fqe.png", rows, correlation)
    result = {"stage": "evaluate", "evaluation": "fqe", "env": env.name, "dataset": cfg.dataset.name, "seed": cfg.seed}
    result |= {"dataset_checksum": metadata["checksum"], "dataset_return": dataset.result()["return_mean"]}
    result |= {"rank_correlation": correlation, "checkpoints": rows, "item_embeddings": env.fingerprint}
    write_json(run.path / "result.json", result)


def _draw(path: Path, rows: list[dict[str, Any]], correlation: float | None) -> None:
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
    axis.set_xlabel("return in the simulator (clicks an episode)")
    axis.set_ylabel("return by fitted Q evaluation")
    told = "" if correlation is None else f", rank correlation {correlation:.2f}"
    axis.set_title(f"{rows[0]['agent']}, {len(rows)} checkpoints{told}", fontsize=10)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _show(run: Run, simulated: bool) -> None:
    result = run.result()
    rows = []
    for row in result["checkpoints"]:
        shown = f"{row['simulated']:.1f} ± {row['simulated_interval']:.1f}" if simulated else ""
        rows.append([row["checkpoint"], f"{row['step']:,}", f"{row['estimate']:.1f} ± {row['interval']:.1f}", shown])
    title = f"fitted Q evaluation on {result['dataset']} data (mean return {result['dataset_return']:.1f})"
    table(title, ["checkpoint", "step", "estimate", "simulator"], rows)
    if result["rank_correlation"] is not None:
        note(f"rank correlation of estimate and simulator over the checkpoints: {result['rank_correlation']:.2f}")
