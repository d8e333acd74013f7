"""stage=online: train an agent in the simulator, then test its best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.agents.base import Agent
from slaterl.build import (
    AGENT_NODES,
    build_agent,
    build_env,
    compares_items,
    env_spec,
    plain,
    resolve_device,
    settings_of,
)
from slaterl.console import note
from slaterl.data.online import OnlineData
from slaterl.envs.topic_rec import TopicRec
from slaterl.evaluation import anchors, evaluate, show_result
from slaterl.fit import Schedule, fit
from slaterl.loggers import make_loggers
from slaterl.plots import plot_curves
from slaterl.policies import load_policy
from slaterl.runs import Run, write_json
from slaterl.seeds import stream
from slaterl.stages.inputs import inputs_of, make_inputs, provenance, ranker_spec

PROTOCOL = (
    "max_steps",
    "random_steps",
    "num_envs",
    "batch_size",
    "capacity",
    "log_every_n_steps",
    "val_every_n_steps",
    "val_users",
    "test_users",
    "save_every_n_steps",
)


def online(cfg: DictConfig) -> Run:
    """Find or make a trained and tested agent, and its ranker before it."""
    env = build_env(cfg.env, resolve_device(cfg.device))
    config = {name: plain(cfg[name]) for name in ("env", *AGENT_NODES)}
    agent = build_agent(config, env, cfg.seed)  # before anything is made: a wrong setting must not cost an hour
    inputs = inputs_of(cfg, env, agent)
    spec = {
        "env": env_spec(cfg.env, env),
        "agent": settings_of(cfg.agent),
        "belief": settings_of(cfg.belief),
        **ranker_spec(cfg, agent, inputs),
        "protocol": {name: cfg[name] for name in PROTOCOL},
        "seed": cfg.seed,
    }
    run = Run(Path(cfg.paths.root), "online", env.name, _name(cfg), spec, products=("result.json", "best.ckpt"))
    with run.making(cfg, inputs) as needed:
        if needed:
            make_inputs(cfg, agent, inputs)
            _make(cfg, config, env, agent, run, inputs)
    _show(run)
    return run


def _name(cfg: DictConfig) -> str:
    parts = [cfg.agent.name, cfg.ranker.name if "_target_" in cfg.ranker else None]
    parts.append(cfg.item_embeddings.name if compares_items(cfg) else None)
    parts.append("oracle-state" if cfg.belief.name == "none" else None)
    return "-".join([*(part for part in parts if part), f"seed{cfg.seed}"])


def _make(
    cfg: DictConfig, config: dict[str, Any], env: TopicRec, agent: Agent, run: Run, inputs: dict[str, Run]
) -> None:
    seed = cfg.seed
    data = OnlineData(
        env,
        agent,
        max_steps=cfg.max_steps,
        random_steps=cfg.random_steps,
        num_envs=cfg.num_envs,
        batch_size=cfg.batch_size,
        capacity=cfg.capacity,
        users=stream(seed, "training users", env.device),
        exploration=stream(seed, "exploration", env.device),
        batches=stream(seed, "batches", env.device),
    )
    policy = agent.policy()

    def validate() -> dict[str, float]:
        return evaluate(policy, env, cfg.val_users, seed, "validation").named("val/")

    outcome = fit(
        agent,
        data,
        folder=run.path,
        kind="agent",
        config={
            **config,
            "catalogue": env.item_embeddings.cpu(),
            "evaluation": {"seed": seed, "test_users": cfg.test_users},
        },
        schedule=Schedule(
            max_steps=cfg.max_steps,
            val_every_n_steps=cfg.val_every_n_steps,
            log_every_n_steps=cfg.log_every_n_steps,
            save_every_n_steps=cfg.save_every_n_steps,
        ),
        validate=validate,
        score="val/return",
        maximise=True,
        loggers=make_loggers(cfg, run),
        title=f"{cfg.agent.name} on {env.name}",
    )
    best = load_policy(run.path / "best.ckpt", env.device)
    tested = evaluate(best.policy, env, cfg.test_users, seed, "test")
    write_json(
        run.path / "result.json",
        {
            "stage": "online",
            "env": env.name,
            "agent": cfg.agent.name,
            "ranker": cfg.ranker.name,
            "belief": cfg.belief.name,
            "compared_by": cfg.item_embeddings.name if compares_items(cfg) else None,
            "seed": seed,
            "ranker_seed": cfg.ranker_seed,
            "val_return": outcome["best_score"],
            "best_step": outcome["best_step"],
            "test_users": tested.users,
            **tested.named("test_"),
            **anchors(env, cfg.test_users, seed),
            "steps": agent.step,
            **data.counters,
            "item_embeddings": env.fingerprint,
            **provenance(inputs),
            "device": str(env.device),
            "seconds": outcome["seconds"],
        },
    )
    curves = ["val/return", "train/return", *agent.TERMS]
    plot_curves(run.path / "curves.png", run.path / "metrics.csv", curves)


def _show(run: Run) -> None:
    result = run.result()
    parts = [part for part in (result["agent"], result["ranker"], result["compared_by"]) if part and part != "none"]
    title = f"{' + '.join(parts)} on {result['env']}, seed {result['seed']}"
    show_result(title, f"best (step {result['best_step']:,})", result)
    note(f"{result['test_users']} test users; {result['turns']:,} turns and {result['updates']:,} updates of training")
