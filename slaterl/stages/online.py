"""stage=online: train an agent in the simulator, then test its best checkpoint."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slaterl.agents.init_from import act_in_its_box, start_from
from slaterl.agents.loading import check_environment, policy_of
from slaterl.agents.online.collecting import OnlineData
from slaterl.config.build import env_spec, validation_spec
from slaterl.config.sections import OnlineProtocol
from slaterl.evaluation.constant_slate import tell_without_search
from slaterl.evaluation.evaluate import evaluate_both, measure_names
from slaterl.runs.files import fingerprint_of
from slaterl.runs.products import Make, Product
from slaterl.runs.run import Run
from slaterl.seeds import stream
from slaterl.stages.agent import agent_inputs, agent_run, begin_agent, give_inputs, in_simulator, provenance, show_agent
from slaterl.stages.agent import train as train_agent
from slaterl.training import checkpoints
from slaterl.training.fit import Schedule

KEPT = 12  # checkpoints for dataset=medium to choose from; no setting, because no result depends on it


def online(cfg: DictConfig) -> Product:
    """Return the trained and tested agent. It starts from its ranker or from item embeddings."""
    inputs = agent_inputs(cfg)
    spec: dict[str, Any] = {"protocol": {field.name: cfg[field.name] for field in fields(OnlineProtocol)}}
    spec |= validation_spec(cfg)
    start = cfg.init_from
    name = ""
    if start is not None:
        state = checkpoints.load(Path(start), "agent")
        state.pop("data", None)  # a replay buffer, which is large
        name = f"from_{state['config']['agent']['name']}"
        spec["init_from"] = fingerprint_of(Path(start))
    run = agent_run(cfg, "online", name, inputs, spec)

    def begin() -> Make:
        env, agent = begin_agent(cfg, inputs)
        if start is not None:
            if not cfg.force:
                check_environment(policy_of(state, start), env_spec(cfg.env, env), f"init_from={start}")
            start_from(agent, state, start)

        def make() -> dict[str, Any]:
            give_inputs(agent, inputs)
            if start is not None:
                act_in_its_box(agent, state, start)
            data = OnlineData(
                env,
                agent,
                max_steps=cfg.max_steps,
                random_steps=cfg.random_steps,
                num_envs=cfg.num_envs,
                batch_size=cfg.batch_size,
                capacity=cfg.capacity,
                warm=start is not None,
                users=stream(cfg.seed, "training users", env.device),
                exploration=stream(cfg.seed, "exploration", env.device),
                batches=stream(cfg.seed, "batches", env.device),
            )
            schedule = Schedule(
                max_steps=cfg.max_steps,
                val_every_n_steps=cfg.val_every_n_steps,
                log_every_n_steps=cfg.log_every_n_steps,
                save_every_n_steps=cfg.save_every_n_steps,
                keep=KEPT,
            )
            policy = agent.policy()

            def validate() -> dict[str, float]:
                return evaluate_both(policy, env, cfg.val_users, cfg.seed, "validation", "val/")

            validated = [f"val/{name}" for name in measure_names(env, policy)]
            test = in_simulator(env, cfg.test_users, cfg.seed, cfg.constant_slate_users)
            result = train_agent(cfg, run, env, agent, data, schedule, cfg.test_users, validate, validated, test)
            return {**result, **provenance(inputs), "init_from": spec.get("init_from")}

        return make

    def show(run: Run) -> None:
        show_agent(run)
        tell_without_search(cfg.constant_slate_users, run.result())

    return Product(run, cfg, begin, inputs, show)
