"""What training an agent is, wherever its batches come from: plan its run, fit, test the best checkpoint, tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.agents.base import Agent
from slaterl.agents.loading import LoadedPolicy, load_policy
from slaterl.config.build import AGENT_NODES, build_agent, compares_items, env_spec, plain, settings_of
from slaterl.console import note
from slaterl.envs.topic_rec import TopicRec
from slaterl.evaluation.evaluate import anchors, evaluate
from slaterl.evaluation.show import show_result
from slaterl.runs.run import Run, write_json
from slaterl.stages.inputs import inputs_of, provenance, ranker_spec
from slaterl.training.curves import plot_curves
from slaterl.training.fit import Data, Schedule, fit
from slaterl.training.loggers import make_loggers


@dataclass(frozen=True)
class Plan:
    """An agent's run before it is made, and what it is made of."""

    run: Run
    inputs: dict[str, Run]
    config: dict[str, Any]
    env: TopicRec
    agent: Agent


def plan(cfg: DictConfig, env: TopicRec, stage: str, name: str, **spec: Any) -> Plan:
    """The run of this configuration in a stage, made or not.

    Args:
        name: what the run is called besides `agent_name`.
        spec: what determines the agent besides its nodes, its ranker, its environment and its seed.
    """
    config = {name: plain(cfg[name]) for name in ("env", *AGENT_NODES)}
    agent = build_agent(config, env, cfg.seed)  # before anything is made: a wrong setting must not cost an hour
    inputs = inputs_of(cfg, env, agent)
    spec = {
        "env": env_spec(cfg.env, env),
        "agent": settings_of(cfg.agent),
        "belief": settings_of(cfg.belief),
        **ranker_spec(cfg, agent, inputs),
        **spec,
        "seed": cfg.seed,
    }
    name = "-".join([*agent_name(cfg), *([name] if name else []), f"seed{cfg.seed}"])
    run = Run(Path(cfg.paths.root), stage, env.name, name, spec, products=("result.json", "best.ckpt"))
    return Plan(run, inputs, config, env, agent)


def agent_name(cfg: DictConfig) -> list[str]:
    """What determines an agent, in words: agent, ranker, item embeddings."""
    parts = [cfg.agent.name, cfg.ranker.name if "_target_" in cfg.ranker else None]
    parts.append(cfg.item_embeddings.name if compares_items(cfg) else None)
    parts.append("oracle-state" if cfg.belief.name == "none" else None)
    return [part for part in parts if part]


def train(
    cfg: DictConfig,
    planned: Plan,
    data: Data,
    schedule: Schedule,
    users: int,
    validate: Callable[[], dict[str, float]],
    validated: Sequence[str],
    test: Callable[[LoadedPolicy], dict[str, Any]],
    **found: Any,
) -> None:
    """Fit the agent, test its best checkpoint, and write the result and the curves.

    Args:
        users: of a test in the simulator.
        validated: names of the metrics that `validate` returns.
        test: what the result says of the best checkpoint: test_users, test_return, test_interval, ...
        found: what the result also says.
    """
    env, agent, run, seed = planned.env, planned.agent, planned.run, cfg.seed
    outcome = fit(
        agent,
        data,
        folder=run.path,
        kind="agent",
        config={
            **planned.config,
            "catalogue": env.catalogue(),
            "evaluation": {"seed": seed, "test_users": users},
        },
        schedule=schedule,
        validate=validate,
        validated=validated,
        score="val/return",
        maximise=True,
        loggers=make_loggers(cfg, run),
        title=f"{cfg.agent.name} on {env.name}",
    )
    best = load_policy(run.path / "best.ckpt", env.device)
    result = {
        "stage": run.stage,
        "env": env.name,
        "agent": cfg.agent.name,
        "ranker": cfg.ranker.name,
        "belief": cfg.belief.name,
        "compared_by": cfg.item_embeddings.name if compares_items(cfg) else None,
        "seed": seed,
        "ranker_seed": cfg.ranker_seed,
        "val_return": outcome["best_score"],
        "best_step": outcome["best_step"],
        **test(best),
        "steps": agent.step,
        **data.counters,
        "item_embeddings": env.fingerprint,
        **provenance(planned.inputs),
        **found,
        "device": str(env.device),
        "seconds": outcome["seconds"],
    }
    write_json(run.path / "result.json", result)
    curves = ["val/return", *data.measures, *agent.TERMS]
    plot_curves(run.path / "curves.png", run.path / "metrics.csv", curves)


def in_simulator(env: TopicRec, users: int, seed: int) -> Callable[[LoadedPolicy], dict[str, Any]]:
    """A test: serve the test users in the simulator, and let them be served by what every policy is compared with."""

    def test(best: LoadedPolicy) -> dict[str, Any]:
        tested = evaluate(best.policy, env, users, seed, "test")
        return {"test_users": users, **tested.named("test_"), **anchors(env, users, seed)}

    return test


def show_agent(run: Run) -> None:
    """The table that ends a run."""
    result = run.result()
    parts = [part for part in (result["agent"], result["ranker"], result["compared_by"]) if part and part != "none"]
    title = f"{' + '.join(parts)} on {result['env']}, seed {result['seed']}"
    if result["test_users"] is None:
        shown = f"{result['test_return']:.1f} ± {result['test_interval']:.1f}"
        note(f"{title}: best (step {result['best_step']:,}) by fitted Q evaluation: {shown}")
        return
    show_result(title, f"best (step {result['best_step']:,})", result)
    turns = f"{result['turns']:,} turns and " if "turns" in result else ""
    note(f"{result['test_users']} test users; {turns}{result['updates']:,} updates of training")
