"""stage=log_data: what the epsilon-oracle shows to new users, for pretraining rankers."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType

from omegaconf import DictConfig

from slaterl.agents.heuristics import EpsilonOracle
from slaterl.config.build import build_env, env_spec, plain, resolve_device
from slaterl.console import note, progress
from slaterl.data import trajectories
from slaterl.envs.topic_rec import TopicRec
from slaterl.rollout import collect
from slaterl.runs.run import Run, write_json
from slaterl.seeds import stream


def logged_data_run(cfg: DictConfig, env: TopicRec) -> Run:
    """Where the logged data of this configuration lie, made or not; with source=dataset, those of `dataset`."""
    settings = plain(cfg.logged_data)
    if settings.pop("source") == "dataset":
        return _datasets().dataset_run(cfg, env)
    name = f"epsilon{settings['epsilon']}-{settings['trajectories']}-seed{settings['seed']}"
    spec = {"env": env_spec(cfg.env, env), "logged_data": settings}
    return Run(
        Path(cfg.paths.root), "log_data", env.name, name, spec, products=("result.json", "trajectories.safetensors")
    )


def source_of(cfg: DictConfig) -> str:
    """Name the logged data by the setting that chose them, for messages."""
    if cfg.logged_data.source == "dataset":
        return f"dataset.path={cfg.dataset.path}" if "path" in cfg.dataset else f"dataset={cfg.dataset.name}"
    return f"logged_data.trajectories={cfg.logged_data.trajectories}"


def log_data(cfg: DictConfig) -> Run:
    """Find or make the logged data."""
    if cfg.logged_data.source == "dataset":
        return _datasets().collect(cfg)
    env = build_env(cfg.env, resolve_device(cfg.device))
    run = logged_data_run(cfg, env)
    with run.making(cfg, inputs={}) as needed:
        if needed:
            _make(cfg, env, run)
    return run


def _datasets() -> ModuleType:
    """Imported late: datasets are collected with agents, whose rankers are made from logged data."""
    from slaterl.stages import collect

    return collect


def _make(cfg: DictConfig, env: TopicRec, run: Run) -> None:
    settings = cfg.logged_data
    count, seed = settings.trajectories, settings.seed
    policy = EpsilonOracle(
        epsilon=settings.epsilon,
        num_items=env.num_items,
        slate_size=env.slate_size,
        generator=stream(seed, "logging policy", env.device),
    )
    started = time.perf_counter()
    with progress("log data", count, "trajectories") as show:
        users = stream(seed, "logged users", env.device)
        num_envs = min(settings.num_envs, count)
        data = collect(policy, env, count, generator=users, deterministic=False, num_envs=num_envs, on_progress=show)
    seconds = time.perf_counter() - started
    behaviour = {"name": "epsilon_oracle", "epsilon": settings.epsilon, "seed": seed}
    metadata = {"env": plain(cfg.env), "item_embeddings": env.fingerprint, "behaviours": [behaviour]}
    trajectories.save(run.path / "trajectories.safetensors", data, metadata)
    returns = data.returns
    write_json(
        run.path / "result.json",
        {
            "stage": "log_data",
            "env": env.name,
            "item_embeddings": env.fingerprint,
            "trajectories": count,
            "turns": count * env.episode_length,
            "seed": seed,
            "return_mean": returns.mean().item(),
            "return_std": returns.std().item() if count > 1 else 0.0,
            "seconds": seconds,
        },
    )
    note(f"logged data: {count:,} trajectories, mean return {returns.mean().item():.1f}, in {seconds:.0f} s")
