"""stage=online: train an agent in the simulator, then test its best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.agents.init_from import check_same_ranker, start_from
from slaterl.agents.loading import check_environment, policy_of
from slaterl.agents.online.collecting import OnlineData
from slaterl.config.build import build_env, env_spec, resolve_device
from slaterl.envs.topic_rec import TopicRec
from slaterl.evaluation.evaluate import evaluate, measure_names
from slaterl.runs.files import fingerprint_of
from slaterl.runs.run import Run
from slaterl.seeds import stream
from slaterl.stages.inputs import make_inputs
from slaterl.stages.training import Plan, in_simulator, plan, show_agent, train
from slaterl.training import checkpoints
from slaterl.training.fit import Schedule

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


def online_plan(cfg: DictConfig, env: TopicRec) -> Plan:
    """The run of this configuration, made or not."""
    spec: dict[str, Any] = {"protocol": {name: cfg[name] for name in PROTOCOL}}
    if cfg.init_from is None:
        return plan(cfg, env, "online", "", **spec)
    state = checkpoints.load(Path(cfg.init_from), "agent")
    if not cfg.force:
        check_environment(policy_of(state, cfg.init_from), env_spec(cfg.env, env), f"init_from={cfg.init_from}")
    spec["init_from"] = fingerprint_of(Path(cfg.init_from))
    planned = plan(cfg, env, "online", f"from_{state['config']['agent']['name']}", **spec)
    start_from(planned.agent, state, cfg.init_from)
    return planned


def online(cfg: DictConfig) -> Run:
    """Find or make a trained and tested agent, and its ranker before it."""
    planned = online_plan(cfg, build_env(cfg.env, resolve_device(cfg.device)))
    with planned.run.making(cfg, planned.inputs) as needed:
        if needed:
            make_inputs(cfg, planned.agent, planned.inputs)
            if cfg.init_from is not None:
                check_same_ranker(planned.agent, checkpoints.load(Path(cfg.init_from), "agent"), cfg.init_from)
            _make(cfg, planned)
    show_agent(planned.run)
    return planned.run


def _make(cfg: DictConfig, planned: Plan) -> None:
    seed, env, agent = cfg.seed, planned.env, planned.agent
    data = OnlineData(
        env,
        agent,
        max_steps=cfg.max_steps,
        random_steps=cfg.random_steps,
        num_envs=cfg.num_envs,
        batch_size=cfg.batch_size,
        capacity=cfg.capacity,
        warm=cfg.init_from is not None,
        users=stream(seed, "training users", env.device),
        exploration=stream(seed, "exploration", env.device),
        batches=stream(seed, "batches", env.device),
    )
    schedule = Schedule(
        max_steps=cfg.max_steps,
        val_every_n_steps=cfg.val_every_n_steps,
        log_every_n_steps=cfg.log_every_n_steps,
        save_every_n_steps=cfg.save_every_n_steps,
    )
    policy = agent.policy()

    def validate() -> dict[str, float]:
        return evaluate(policy, env, cfg.val_users, seed, "validation").named("val/")

    validated = [f"val/{name}" for name in measure_names(env)]
    test = in_simulator(env, cfg.test_users, seed)
    start = planned.run.spec.get("init_from")
    train(cfg, planned, data, schedule, cfg.test_users, validate, validated, test, init_from=start)
