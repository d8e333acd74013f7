"""stage=benchmark: how fast this machine runs this configuration, and how long a full run will take."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from slaterl.config.build import resolve_device
from slaterl.console import note, table
from slaterl.errors import UserError
from slaterl.evaluation.speed import device_name, measure
from slaterl.runs.products import Make, Product
from slaterl.runs.run import Run
from slaterl.stages.agent import begin_agent

# the published code on 2 CPU cores, in the units of the table below
PUBLISHED = {
    "simulator": 2_500,
    "log_data": 20,
    "pretrain": 6_650,
    "collect": 2.2,
    "online sac": 1 / 0.279,
    "validation": 200 / 14,
}
PUBLISHED_SIZES = {"num_items": 1000, "slate_size": 10, "episode_length": 100, "batch_size": 20}


def benchmark(cfg: DictConfig) -> Product:
    """Return the speeds of the simulator and of every stage: medians of `benchmark.repeats` after one warm-up."""
    machine = {
        "host": platform.node(),
        "device": device_name(resolve_device(cfg.device)),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "matmul_precision": cfg.matmul_precision,
        "torch": torch.__version__,
    }
    spec = {"machine": machine, "time": time.time()}  # every benchmark is a new product
    run = Run(Path(cfg.paths.root), "benchmark", cfg.env.name, f"{cfg.agent.name}-{cfg.ranker.name}", spec)

    def begin() -> Make:
        env, agent = begin_agent(cfg, {})
        if not isinstance(agent, torch.nn.Module):
            raise UserError(f"agent={cfg.agent.name} does not learn; stage=benchmark measures learning agents")

        def make() -> dict[str, Any]:
            note(f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads")
            sizes = {name: cfg[name] for name in ("num_envs", "batch_size", "capacity", "max_steps", "random_steps")}
            sizes |= {name: cfg.env[name] for name in ("num_items", "slate_size", "episode_length")}
            return {**machine, **sizes, "agent": cfg.agent.name, **measure(cfg, env, agent)}

        return make

    return Product(run, cfg, begin, show=lambda made: _show(made.result()))


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
