"""Estimates from data: evaluation=user_model, and what offline.validation chooses checkpoints by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from slaterl.agents.base import Agent, LatentAgent
from slaterl.agents.loading import Ids, check_items, load_policy
from slaterl.config.build import parameters_of, plain, precision_spec, settings_of, simulator
from slaterl.config.dataset import is_foreign
from slaterl.console import note, progress, table
from slaterl.data.trajectories import Trajectories
from slaterl.data.vocabulary import item_ids
from slaterl.envs.env import Env
from slaterl.errors import UserError
from slaterl.evaluation.compared import cells, checkpoints_in, correlated, draw, row_of, tell_correlation
from slaterl.evaluation.fqe import fitted_q_evaluation
from slaterl.evaluation.user_model import Members
from slaterl.rollout import Policy
from slaterl.runs.files import fingerprint_of
from slaterl.runs.products import Make, Product, product_of
from slaterl.runs.run import Run
from slaterl.seeds import stream_seed
from slaterl.stages.agent import agent_inputs, begin_agent, give_inputs, ranker_spec

Named = list[tuple[str, str, int, Policy]]  # file or agent, agent, step, policy


def estimated(cfg: DictConfig) -> Product:
    """Return the estimates of `checkpoint`, of all checkpoints in a run's folder, or of an agent that does not learn.

    If the dataset was collected in the simulator, each policy is also tested there.
    """
    model = product_of(cfg, "user_model")
    spec: dict[str, Any] = {"user_model": model.run.digest, "seed": cfg.seed, "users": cfg.test_users}
    inputs: dict[str, Product] = {"user_model": model}
    load: Callable[[Env], Callable[[], Named]]
    if cfg.checkpoint is None:
        target, name = get_object(cfg.agent["_target_"]), cfg.agent.name
        if hasattr(target, "update"):
            raise UserError(f"checkpoint: agent={name} learns, so evaluating it needs checkpoint=<path>")
        by_ranker = "ranker" in parameters_of(target) and cfg.agent.get("slate") is None
        of_agent = agent_inputs(cfg) if by_ranker else {}
        inputs |= of_agent
        spec |= {"agent": settings_of(cfg.agent), **(ranker_spec(cfg, of_agent) if of_agent else {})}

        def load(env: Env) -> Callable[[], Named]:
            policy = begin_agent(cfg, of_agent)[1]

            def loaded() -> Named:
                give_inputs(policy, of_agent)
                return [(name, name, 0, policy)]

            return loaded
    else:
        files = checkpoints_in(cfg.checkpoint, cfg.evaluation)
        spec["checkpoints"] = [fingerprint_of(file) for file in files]
        name = f"{files[0].parent.name.partition('-')[0]}"

        def load(env: Env) -> Callable[[], Named]:
            ids = item_ids(product_of(cfg, "collect").run.path, env.fingerprint)
            found = [_policy(file, env, ids) for file in files]
            return lambda: found

    label = f"user_model-{name}-{cfg.dataset.name}-seed{cfg.seed}"
    spec |= precision_spec(cfg)
    run = Run(Path(cfg.paths.root), "evaluate", cfg.env.name, label, spec, products=("result.json",))

    def begin() -> Make:
        env = simulator(cfg)
        loaded = load(env)
        return lambda: _make(cfg, env, run, model.run, loaded())

    return Product(run, cfg, begin, inputs, _show)


def estimator(
    cfg: DictConfig, env: Env, recorded: Trajectories, inputs: Mapping[str, Product]
) -> Callable[[Agent, str, int], Mapping[str, Any]]:
    """Return what offline.validation estimates by: of an agent, a name and a number of users, return and interval.

    Args:
        recorded: the dataset, for fitted Q evaluation.
        inputs: the finished user model, if offline.validation=user_model.
    """
    if inputs:
        members = Members.of(inputs["user_model"].run, env.device)
        return lambda agent, name, users: members.estimate(agent.policy(), users, cfg.seed, name).named("")

    def by_fqe(agent: Agent, name: str, users: int) -> Mapping[str, Any]:
        assert isinstance(agent, LatentAgent)
        settings = plain(cfg.fqe) | {"seed": stream_seed(cfg.seed, f"fqe of the {name}")}
        # On all trajectories, because on the best ones, which pct_bc learns from, every policy would look good.
        found = fitted_q_evaluation(agent, recorded, num_items=env.num_items, **settings)
        return {"return": found.mean_return, "interval": found.interval}

    return by_fqe


def _policy(file: Path, env: Env, ids: Ids) -> tuple[str, str, int, Policy]:
    loaded = load_policy(file, env.device)
    check_items(loaded, env, file, ids)  # a user model knows no other items
    return file.name, loaded.config["agent"]["name"], loaded.step, loaded.policy


def _make(cfg: DictConfig, env: Env, run: Run, model: Run, policies: Named) -> dict[str, Any]:
    members = Members.of(model, env.device)
    simulated, rows = env.simulates and not is_foreign(cfg.dataset), []
    with progress("estimates by the user model", len(policies), "policies") as show:
        for file, agent, step, policy in policies:
            found = members.estimate(policy, cfg.test_users, cfg.seed, "test")
            entries = {"estimate": found.mean_return, **found.named("")}
            rows.append(row_of(file, agent, step, entries, policy, env if simulated else None, cfg))
            show(len(rows))
    correlation = correlated(rows)
    if simulated and len(rows) > 1:
        draw(run.path / "user_model.png", rows, correlation["rank_correlation"], "the user model")
    return {
        "evaluation": "user_model",
        "dataset": cfg.dataset.name,
        "seed": cfg.seed,
        "users": cfg.test_users,
        "user_model_run": model.digest,
        **correlation,
        "checkpoints": rows,
        "item_embeddings": env.fingerprint,
    }


def _show(run: Run) -> None:
    result = run.result()
    rows = []
    for row in result["checkpoints"]:
        shares = (row["covered_cells"], row["covered_pairs"], row.get("covered_slates"))
        seen = ", ".join(f"{share:.0%}" for share in shares if share is not None) + (" !" if row["warning"] else "")
        rows.append([*cells(row), seen])
    title = f"returns by the user model of {result['dataset']} data"
    table(title, ["policy", "step", "estimate", "simulator", "items, pairs, slates seen"], rows)
    for row in result["checkpoints"]:
        if row["warning"]:
            note(f"warning: {row['checkpoint']}: {row['warning']}")
    tell_correlation(result)
