"""Every preset of a sweep: all its jobs are sound, and some of them run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from slaterl.config.check import check_config
from slaterl.paths import CONF
from slaterl.sweeps.records import jobs
from slaterl.sweeps.study import space_of
from tests.helpers import compose_config

# how many jobs each preset has, and a part of it that is quick to run, with how many it has
PRESETS = [
    ("replication", 12, ["env=diffuse_divpen"], 2),
    ("medium_collection", 6, ["env=focused_mix"], 1),
    ("lambda_grid", 20, ["params.lambda_KL=0.1", "params.lambda_click=0.0,1.0"], 2),
    ("figure3", 200, ["params.lambda_KL=0.1", "params.lambda_click=0.0", "seed=1"], 1),
    ("gamma0", 10, ["seed=1"], 1),
    ("offline_benchmark", 504, ["dataset=expert", "env=diffuse_mix", "agent=bc,iql", "seed=1"], 2),
    ("stable_environments", 252, ["method=slateq,best_constant_slate", "env=focused_mix_stable", "seed=1"], 2),
    ("table2", 480, ["method=slateq,reinforce_softmax", "env=focused_mix", "seed=1"], 2),
]
BASES = {"figure3": "lambda_grid"}  # presets that add to another one


@pytest.mark.parametrize(("preset", "count"), [preset[:2] for preset in PRESETS])
def test_all_jobs_are_sound(preset: str, count: int) -> None:
    files = [OmegaConf.load(CONF / "experiment" / f"{name}.yaml") for name in (preset, BASES.get(preset)) if name]
    params = {key: values for file in files for key, values in file.hydra.sweeper.params.items()}
    choices = [[f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()]
    combinations = list(itertools.product(*choices))
    assert len(combinations) == count
    for overrides in combinations[:: -(-count // 24)]:  # of a large sweep some of all its parts
        cfg = compose_config(f"experiment={preset}", *overrides)
        check_config(cfg)
        sizes = (20_000, 10_000) if preset in ("offline_benchmark", "stable_environments") else (100_000, 50_000)
        assert (cfg.max_steps, cfg.save_every_n_steps) == sizes


def test_every_preset_is_here() -> None:
    presets = {file.stem for file in (CONF / "experiment").glob("*.yaml")}
    assert presets - {"head_to_head", "tune"} == {preset[0] for preset in PRESETS}  # the one is no sweep


@pytest.mark.parametrize("end", ["low", "high"])
def test_what_is_tuned(end: str) -> None:
    """Both ends of each interval are sound. tests/sweeps/test_tune.py runs studies."""
    pytest.importorskip("optuna")
    params = OmegaConf.load(CONF / "experiment" / "tune.yaml").hydra.sweeper.params
    parser = OverridesParser.create()
    fixed, space = space_of(parser.parse_overrides([f"{key}={values}" for key, values in params.items()]))
    assert len(space) == 4 and not fixed
    check_config(compose_config("experiment=tune", *(f"{key}={getattr(one, end)}" for key, one in space.items())))


def test_offline_benchmark_completes_one_dataset_after_the_other() -> None:
    """Expert data come first, because scores need the expert. One ranker serves all seeds: that of the data."""
    params = OmegaConf.load(CONF / "experiment" / "offline_benchmark.yaml").hydra.sweeper.params
    assert list(params) == ["env", "dataset", "agent", "seed"] and params.dataset.split(",")[0] == "expert"
    for seed in params.seed.split(","):
        cfg = compose_config("experiment=offline_benchmark", f"seed={seed}", "dataset.run.seed=7")
        assert (cfg.ranker_seed, cfg.seed) == (7, int(seed))
        assert cfg.offline.max_steps / cfg.offline.val_every_n_steps == 12


def test_fitted_q_evaluation_is_small_at_the_smallest_scale_only() -> None:
    """2,000 updates of 5 members take 100 s, where everything else at scale=smoke takes seconds."""
    sizes = {scale: compose_config(f"scale={scale}").fqe for scale in ("smoke", "demo", "paper")}
    assert sizes["smoke"].updates * sizes["smoke"].members * sizes["smoke"].batch_size <= 1_000
    for scale in ("demo", "paper"):
        assert (sizes[scale].updates, sizes[scale].members, sizes[scale].batch_size) == (2_000, 5, 64)


@pytest.mark.parametrize(("preset", "part", "count"), [(preset[0], *preset[2:]) for preset in PRESETS])
def test_runs_at_the_smallest_scale(preset: str, part: list[str], count: int, tmp_path: Path) -> None:
    arguments = [f"experiment={preset}", "scale=smoke", "device=cpu", "threads=1", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = subprocess.run(
        [sys.executable, "-m", "slaterl.run", *arguments, *part],
        env={**os.environ, "SLATERL_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [job.state for job in jobs(tmp_path / "sweep")] == ["finished"] * count
    kept = "offline/*/*/step12.ckpt" if preset == "offline_benchmark" else "online/*/*/step30.ckpt"
    assert len(list(tmp_path.glob(f"home/{kept}"))) == count
