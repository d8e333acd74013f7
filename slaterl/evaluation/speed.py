"""Measure how fast this machine runs the simulator and every stage, and estimate the time of a full run."""

from __future__ import annotations

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
from slaterl.config.build import make
from slaterl.data import trajectories
from slaterl.envs.env import Env
from slaterl.evaluation.evaluate import evaluate
from slaterl.rankers.gems import SlateVAE
from slaterl.rankers.pretraining import GeMSPretraining, SlateData
from slaterl.rollout import collect, rollout
from slaterl.seeds import stream

SIMULATED_USERS = 1024
UPDATES = 10  # in one measurement


def measure(cfg: DictConfig, env: Env, agent: Any) -> dict[str, Any]:
    """Measure the simulator and every stage with an untrained agent, and estimate a full run.

    Returns:
        medians of `benchmark.repeats` after one warm-up: turns, trajectories and slates per second, seconds
        per step and validation, memory in megabytes, and the estimated seconds of each stage (estimate_...).
    """
    users = stream(cfg.seed, "benchmark", env.device)
    sizes: dict[str, Any] = {"num_items": env.num_items, "slate_size": env.slate_size, "generator": users}
    random = EpsilonOracle(epsilon=1.0, **sizes)
    logging = EpsilonOracle(epsilon=cfg.logged_data.epsilon, **sizes)

    def seconds(action: Callable[[], Any]) -> float:
        """Return the median over the repeats."""
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

    if isinstance(getattr(agent, "ranker", None), SlateVAE):
        gems = make(cfg.ranker, "ranker", num_items=env.num_items, slate_size=env.slate_size)
        learner = GeMSPretraining(gems, lr=cfg.pretrain.lr, generator=users).to(env.device)
        size = cfg.pretrain.batch_size
        source = f"logged_data.num_envs={count}"
        batches = iter(SlateData(logged, learner, batch_size=size, epochs=1000, holdout=0.1, source=source, seed=0))
        found["pretrain_slates_per_s"] = size * 20 / seconds(lambda: [learner.update(next(batches)) for _ in range(20)])

    explorer, collected = agent.policy(users), cfg.dataset.get("num_envs", count)
    found["collect_trajectories_per_s"] = collected / seconds(lambda: serve(explorer, collected))

    def updates() -> None:
        for _ in range(UPDATES):
            agent.step += agent.steps_in(batch)  # some agents update the policy only every few steps
            agent.update(batch)

    if agent.LEARNS_FROM == "dataset":
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


def _estimate(cfg: DictConfig, env: Env, found: dict[str, Any]) -> dict[str, float]:
    """Estimate the seconds of each stage of a full run of this configuration, starting without any product."""
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in info.read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or "cpu"
