"""stage=offline: train an agent on a dataset, then test its best checkpoint."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from slaterl.agents.base import LatentAgent
from slaterl.agents.offline.labels import labelled
from slaterl.agents.offline.recorded import OfflineData
from slaterl.config.build import plain, validation_spec
from slaterl.config.dataset import is_foreign, online_cfg
from slaterl.console import note
from slaterl.data import trajectories
from slaterl.data.vocabulary import item_ids
from slaterl.runs.products import Make, Product, product_of
from slaterl.seeds import stream
from slaterl.stages.agent import agent_inputs, agent_run, begin_agent, give_inputs, provenance, show_agent
from slaterl.stages.agent import train as train_agent
from slaterl.stages.judge import judge_of
from slaterl.training.fit import Schedule


def offline(cfg: DictConfig) -> Product:
    """Return the trained and tested agent. It starts from its dataset, and from its ranker or item embeddings."""
    dataset, inputs = product_of(cfg, "collect"), agent_inputs(cfg)
    protocol = plain(cfg.offline)
    by_fqe = protocol["validation"] == "fqe"
    spec = {"dataset": dataset.run.digest, "protocol": {**protocol, **({"fqe": plain(cfg.fqe)} if by_fqe else {})}}
    users_of = {"user_model": product_of(cfg, "user_model")} if protocol["validation"] == "user_model" else {}
    spec |= {name: product.run.digest for name, product in users_of.items()}
    spec |= validation_spec(cfg)
    run = agent_run(cfg, "offline", cfg.dataset.name, inputs, spec)

    def begin() -> Make:
        env, agent = begin_agent(cfg, inputs)

        def make() -> dict[str, Any]:
            give_inputs(agent, inputs)
            if is_foreign(cfg.dataset) and env.simulates and protocol["validation"] == "simulator":
                note(
                    f"validating and testing on {env.name}; for a log from elsewhere use offline.validation=user_model"
                )
            recorded, metadata = trajectories.load(dataset.run.path / trajectories.FILE, num_items=env.num_items)
            taken = None
            if isinstance(agent, LatentAgent):
                recorded = labelled(recorded, metadata, agent.ranker, protocol["actions"])
                taken = "encoded" if recorded.actions is None else "recorded"
            recorded = recorded.to(env.device)
            data = OfflineData(
                recorded,
                agent,
                max_steps=protocol["max_steps"],
                batch_size=protocol["batch_size"],
                batches=stream(cfg.seed, "batches", env.device),
            )
            schedule = Schedule(
                max_steps=protocol["max_steps"],
                val_every_n_steps=protocol["val_every_n_steps"],
                log_every_n_steps=protocol["log_every_n_steps"],
                save_every_n_steps=protocol["save_every_n_steps"],
            )
            about = dataset.run.result()
            low, high = about.get("random_return"), _expert_return(cfg)
            judge = judge_of(cfg, env, agent, recorded, users_of, low, high)
            users = protocol["test_users"]
            ids = item_ids(dataset.run.path, env.fingerprint)
            result = train_agent(cfg, run, env, agent, data, schedule, users, *judge, ids)
            return {
                **result,
                **provenance(inputs),
                "dataset": cfg.dataset.name,
                "actions": taken,
                "dataset_run": dataset.run.digest,
                "dataset_checksum": metadata["checksum"],
                "dataset_return": about["return_mean"],
                "most_frequent_slate_return": about.get("most_frequent_slate_return"),
                "expert_return": high,
                "gamma": cfg.agent.get("gamma"),
                "reward_scale": cfg.agent.get("reward_scale"),
            }

        return make

    return Product(run, cfg, begin, {"dataset": dataset, **inputs, **users_of}, show_agent)


def _expert_return(cfg: DictConfig) -> float | None:
    """Return the test return of the online run that collects expert data; None if it is unfinished or unknown."""
    if "run" not in cfg.dataset:
        return None
    run = product_of(online_cfg(cfg), "online").run
    return run.result()["test_return"] if run.finished else None
