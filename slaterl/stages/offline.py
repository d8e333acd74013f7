"""stage=offline: train an agent on a dataset, then test its best checkpoint in the simulator."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig

from slaterl.agents.base import LatentAgent
from slaterl.agents.loading import LoadedPolicy
from slaterl.agents.offline.base import OfflineAgent
from slaterl.agents.offline.recorded import OfflineData
from slaterl.config.build import build_env, plain, resolve_device
from slaterl.console import note
from slaterl.data.score import normalised
from slaterl.evaluation.evaluate import evaluate, measure_names
from slaterl.evaluation.fqe import Estimate, fitted_q_evaluation
from slaterl.runs.run import Run
from slaterl.seeds import stream, stream_seed
from slaterl.stages.collect import collect, dataset_run, expert_return, is_foreign, load_dataset
from slaterl.stages.inputs import make_inputs
from slaterl.stages.training import Plan, in_simulator, plan, show_agent, train
from slaterl.training.fit import Schedule


def offline(cfg: DictConfig) -> Run:
    """Find or make a trained and tested agent; its dataset and its ranker before it."""
    env = build_env(cfg.env, resolve_device(cfg.device))
    dataset = dataset_run(cfg, env)
    protocol = plain(cfg.offline)
    if cfg.offline.validation == "fqe":
        protocol["fqe"] = plain(cfg.fqe)
    planned = plan(cfg, env, "offline", cfg.dataset.name, dataset=dataset.digest, protocol=protocol)
    inputs = {**planned.inputs, "dataset": dataset}
    with planned.run.making(cfg, inputs) as needed:
        if needed:
            collect(cfg)
            make_inputs(cfg, planned.agent, planned.inputs)
            if is_foreign(cfg) and protocol["validation"] == "simulator":
                note(f"validated and tested on {env.name}; where the file is from elsewhere: offline.validation=fqe")
            _make(cfg, planned, dataset)
    show_agent(planned.run)
    return planned.run


def _make(cfg: DictConfig, planned: Plan, dataset: Run) -> None:
    seed, env, agent, protocol = cfg.seed, planned.env, planned.agent, cfg.offline
    assert isinstance(agent, OfflineAgent)
    recorded, metadata = load_dataset(dataset, env)
    recorded = recorded.to(env.device)
    data = OfflineData(
        recorded,
        agent,
        max_steps=protocol.max_steps,
        batch_size=protocol.batch_size,
        batches=stream(seed, "batches", env.device),
    )
    schedule = Schedule(
        max_steps=protocol.max_steps,
        val_every_n_steps=protocol.val_every_n_steps,
        log_every_n_steps=protocol.log_every_n_steps,
        save_every_n_steps=protocol.save_every_n_steps,
    )
    found = dataset.result()
    low, high = found["random_return"], expert_return(cfg, env)

    policy = agent.policy()
    measured = [f"val/{name}" for name in measure_names(env)]
    served = in_simulator(env, protocol.test_users, seed)

    def estimated(learned: LatentAgent, name: str) -> Estimate:
        settings = plain(cfg.fqe) | {"seed": stream_seed(seed, f"fqe of the {name}")}
        # on all of the data: the best of them, which pct_bc learns from, would make any policy look good
        return fitted_q_evaluation(learned, recorded, num_items=env.num_items, **settings)

    def validate() -> dict[str, float]:
        if protocol.validation == "fqe":
            measures = dict.fromkeys(measured, math.nan)
            estimate = estimated(agent, "validation")
            measures |= {"val/return": estimate.mean_return, "val/interval": estimate.interval}
        else:
            measures = evaluate(policy, env, protocol.val_users, seed, "validation").named("val/")
        score = normalised(measures["val/return"], low, high)
        return {**measures, "val/normalised": math.nan if score is None else score}

    def test(best: LoadedPolicy) -> dict[str, Any]:
        if protocol.validation == "simulator":
            return served(best)
        estimate = estimated(best.policy.agent, "test")  # type: ignore[attr-defined]
        return {"test_users": None, "test_return": estimate.mean_return, "test_interval": estimate.interval}

    about: dict[str, Any] = {
        "dataset": cfg.dataset.name,
        "dataset_run": dataset.digest,
        "dataset_checksum": metadata["checksum"],
        "dataset_return": found["return_mean"],
        "expert_return": high,
        "gamma": cfg.agent.get("gamma"),
        "reward_scale": cfg.agent.get("reward_scale"),
    }
    validated = [*measured, "val/normalised"]
    train(cfg, planned, data, schedule, protocol.test_users, validate, validated, test, **about)
