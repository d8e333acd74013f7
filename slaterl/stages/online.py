"""stage=online: train an agent in the simulator, then test its best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl import checkpoints
from slaterl.agents.base import LatentAgent
from slaterl.build import build_agent, build_env, env_spec, plain, resolve_device, settings_of
from slaterl.console import note
from slaterl.data.online import OnlineData
from slaterl.envs.topic_rec import TopicRec
from slaterl.evaluation import anchors, evaluate, show_result
from slaterl.files import fingerprint_of
from slaterl.fit import Schedule, fit
from slaterl.loggers import make_loggers
from slaterl.plots import plot_curves
from slaterl.policies import load_policy
from slaterl.runs import Run, write_json
from slaterl.seeds import stream
from slaterl.stages.pretrain import pretrain, ranker_run

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
    config = {name: plain(cfg[name]) for name in ("env", "agent", "belief", "ranker")}
    agent = build_agent(config, env, cfg.seed)  # before anything is made: a wrong setting must not cost an hour
    ranker = ranker_run(cfg, env)
    spec = {
        "env": env_spec(cfg.env, env),
        "agent": settings_of(cfg.agent),
        "belief": settings_of(cfg.belief),
        "ranker": ranker.digest,
        "protocol": {name: cfg[name] for name in PROTOCOL},
        "seed": cfg.seed,
    }
    name = f"{cfg.agent.name}-{cfg.ranker.name}-seed{cfg.seed}"
    run = Run(Path(cfg.paths.root), "online", env.name, name, spec, products=("result.json", "best.ckpt"))
    with run.making(cfg, inputs={"ranker": ranker}) as needed:
        if needed:
            pretrain(cfg)
            agent.ranker.load_state_dict(checkpoints.load(ranker.path / "ranker.ckpt", "ranker")["module"])
            _make(cfg, config, env, agent, run, ranker)
    _show(run)
    return run


def _make(cfg: DictConfig, config: dict[str, Any], env: TopicRec, agent: LatentAgent, run: Run, ranker: Run) -> None:
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
            "item_embeddings": env.item_embeddings.cpu(),
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
            "ranker_run": ranker.digest,
            "ranker_sha256": fingerprint_of(ranker.path / "ranker.ckpt"),
            "logged_data_checksum": ranker.result()["logged_data_checksum"],
            "device": str(env.device),
            "seconds": outcome["seconds"],
        },
    )
    curves = ["val/return", "train/return", "loss/critic", "loss/actor", "value/q", "policy/alpha"]
    plot_curves(run.path / "curves.png", run.path / "metrics.csv", curves)


def _show(run: Run) -> None:
    result = run.result()
    title = f"{result['agent']} + {result['ranker']} on {result['env']}, seed {result['seed']}"
    show_result(title, f"best (step {result['best_step']:,})", result)
    note(f"{result['test_users']} test users; {result['turns']:,} turns and {result['updates']:,} updates of training")
