"""stage=benchmark: how fast this machine runs this configuration, and how long a full run will take."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.agents.offline.base import OfflineAgent
from slaterl.config.build import make, resolve_device
from slaterl.console import note, table
from slaterl.data import trajectories
from slaterl.envs.topic_rec import TopicRec
from slaterl.errors import UserError
from slaterl.evaluation.evaluate import evaluate
from slaterl.rankers.gems import GeMS
from slaterl.rankers.pretraining import GeMSPretraining, SlateData
from slaterl.rollout import collect, rollout
from slaterl.runs.products import Make, Product
from slaterl.runs.run import Run
from slaterl.seeds import stream
from slaterl.stages.agent import begin_agent

SIMULATED_USERS = 1024
# The published code on 2 CPU cores of this class of machine, in the units below.
PUBLISHED = {
    "simulator": 2_500,
    "log_data": 20,
    "pretrain": 6_650,
    "collect": 2.2,
    "online sac": 1 / 0.279,
    "validation": 200 / 14,
}
PUBLISHED_SIZES = {"num_items": 1000, "slate_size": 10, "episode_length": 100, "batch_size": 20}
UPDATES = 10  # in one measurement


def benchmark(cfg: DictConfig) -> Product:
    """Speed of the simulator and of every stage: medians of `benchmark.repeats` after one repeat to warm up."""
    machine = {
        "host": platform.node(),
        "device": _device_name(resolve_device(cfg.device)),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    spec = {"machine": machine, "time": time.time()}  # every benchmark is a product of its own
    run = Run(Path(cfg.paths.root), "benchmark", cfg.env.name, f"{cfg.agent.name}-{cfg.ranker.name}", spec)

    def begin() -> Make:
        env, agent = begin_agent(cfg, {})
        if not isinstance(agent, torch.nn.Module):
            raise UserError(f"agent={cfg.agent.name} does not learn; stage=benchmark measures learning agents")

        def make() -> dict[str, Any]:
            note(f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads")
            sizes = {name: cfg[name] for name in ("num_envs", "batch_size", "capacity", "max_steps", "random_steps")}
            sizes |= {name: cfg.env[name] for name in ("num_items", "slate_size", "episode_length")}
            return {**machine, **sizes, "agent": cfg.agent.name, **_measure(cfg, env, agent)}

        return make

    return Product(run, cfg, begin, show=lambda made: _show(made.result()))


def _measure(cfg: DictConfig, env: TopicRec, agent: Any) -> dict[str, Any]:
    users = stream(cfg.seed, "benchmark", env.device)
    sizes = {"num_items": env.num_items, "slate_size": env.slate_size, "generator": users}
    random = EpsilonOracle(epsilon=1.0, **sizes)
    logging = EpsilonOracle(epsilon=cfg.logged_data.epsilon, **sizes)

    def seconds(action: Callable[[], Any]) -> float:
        """Median over repeats."""
        times = []
        for _ in range(cfg.benchmark.repeats + 1):
            _wait(env.device)
            start = time.perf_counter()
            action()
            _wait(env.device)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def serve(policy: Any, count: int) -> trajectories.Trajectories:
        return rollout(policy, env, count, generator=users, deterministic=False, hidden=agent.sees_hidden)

    found: dict[str, Any] = {}
    found["simulator_turns_per_s"] = (
        SIMULATED_USERS * env.episode_length / seconds(lambda: serve(random, SIMULATED_USERS))
    )

    count = cfg.logged_data.num_envs
    logged = collect(logging, env, count, generator=users, deterministic=False, num_envs=count)
    found["log_data_trajectories_per_s"] = count / seconds(lambda: serve(logging, count))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sample.safetensors"
        trajectories.save(file, logged, {})
        found["log_data_megabytes_per_100k"] = file.stat().st_size / count * 100_000 / 1e6

    if isinstance(getattr(agent, "ranker", None), GeMS):
        gems = make(cfg.ranker, "ranker", num_items=env.num_items, slate_size=env.slate_size)
        learner = GeMSPretraining(gems, lr=cfg.pretrain.lr, generator=users).to(env.device)
        size = cfg.pretrain.batch_size
        batches = iter(SlateData(logged, learner, batch_size=size, epochs=1000, holdout=0.1, seed=0))
        found["pretrain_slates_per_s"] = size * 20 / seconds(lambda: [learner.update(next(batches)) for _ in range(20)])

    explorer, collected = agent.policy(users), cfg.dataset.get("num_envs", count)
    found["collect_trajectories_per_s"] = collected / seconds(lambda: serve(explorer, collected))

    def updates() -> None:
        for _ in range(UPDATES):
            agent.step += agent.steps_in(batch)  # of several updates one can be the policy's
            agent.update(batch)

    if isinstance(agent, OfflineAgent):
        batch = agent.prepare(logged.to(env.device))[: cfg.offline.batch_size]
        found["offline_batch_size"] = len(batch)
        found["offline_step_s"] = seconds(updates) / UPDATES
        val_users = cfg.offline.val_users
    else:
        batch = serve(explorer, cfg.batch_size)
        found["online_trajectory_s"] = seconds(lambda: serve(explorer, cfg.num_envs)) / cfg.num_envs
        found["online_update_s"] = seconds(updates) / UPDATES
        found["online_step_s"] = found["online_trajectory_s"] + found["online_update_s"] / agent.steps_in(batch)
        val_users = cfg.val_users
    found["val_users"] = val_users
    found["validation_s"] = seconds(lambda: evaluate(explorer, env, val_users, cfg.seed, "validation"))
    found["peak_memory_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found | _estimate(cfg, env, found)


def _estimate(cfg: DictConfig, env: TopicRec, found: dict[str, Any]) -> dict[str, float]:
    """Seconds of each stage of a full run of this configuration, from an empty machine."""
    if "offline_step_s" in found:
        stage, updates = "offline", cfg.offline.max_steps
        validations = updates / cfg.offline.val_every_n_steps
    else:
        stage, updates = "online", cfg.max_steps - cfg.random_steps
        validations = cfg.max_steps / cfg.val_every_n_steps
    stages = {f"estimate_{stage}_s": updates * found[f"{stage}_step_s"] + validations * found["validation_s"]}
    if "pretrain_slates_per_s" in found:
        slates = cfg.logged_data.trajectories * (1 - cfg.pretrain.holdout) * env.episode_length * cfg.pretrain.epochs
        stages["estimate_log_data_s"] = cfg.logged_data.trajectories / found["log_data_trajectories_per_s"]
        stages["estimate_pretrain_s"] = slates / found["pretrain_slates_per_s"]
    return {**stages, "estimate_s": sum(stages.values())}


def _show(result: dict[str, Any]) -> None:
    speeds = {
        "simulator, turns/s": ("simulator", result["simulator_turns_per_s"]),
        "logged data, trajectories/s": ("log_data", result["log_data_trajectories_per_s"]),
        "pretraining, slates/s": ("pretrain", result.get("pretrain_slates_per_s")),
        f"collecting with {result['agent']}, trajectories/s": ("collect", result["collect_trajectories_per_s"]),
        f"online {result['agent']}, steps/s": (f"online {result['agent']}", _inverse(result.get("online_step_s"))),
        f"offline {result['agent']}, updates/s": ("offline", _inverse(result.get("offline_step_s"))),
        "validation, users/s": ("validation", result["val_users"] / result["validation_s"]),
    }
    comparable = all(result[name] == value for name, value in PUBLISHED_SIZES.items())
    rows = []
    for label, (key, speed) in speeds.items():
        if speed is not None:
            published = PUBLISHED.get(key) if comparable else None
            ratio = speed / published if published else 0.0
            times = f"{ratio:,.0f} x" if ratio >= 10 else f"{ratio:.2g} x"
            compared = [f"{published:,.1f}", times] if published else ["", ""]
            rows.append([label, f"{speed:,.1f}", *compared])
    table("speed", ["", "here", "published code, 2 cores", ""], rows)
    stages = ("log_data", "pretrain", "online", "offline")
    minutes = {name: result[f"estimate_{name}_s"] / 60 for name in stages if f"estimate_{name}_s" in result}
    parts = ", ".join(f"{name} {spent:,.1f} min" for name, spent in minutes.items())
    note(f"a full run of this configuration: {result['estimate_s'] / 60:,.1f} min ({parts})")
    size, memory = result["log_data_megabytes_per_100k"], result["peak_memory_megabytes"]
    note(f"logged data: {size:.0f} MB per 100,000 trajectories; memory at most {memory:,.0f} MB")


def _inverse(seconds: float | None) -> float | None:
    return None if seconds is None else 1 / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or "cpu"
