"""What launchers refuse: a folder that cannot be made, a single job, a SLURM that does not answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from slaterl.errors import UserError
from slaterl.sweeps import launch
from slaterl.sweeps.launch import announce_jobs, check_folder
from slaterl.sweeps.records import read_job

LAUNCHERS = ["one_by_one", "local_gpus", "slurm_cpu"]


def launcher(folder: Path) -> SimpleNamespace:
    return SimpleNamespace(config=OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_file_in_place_of_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "multirun").write_text("a file")
    command = [sys.executable, "-m", "slaterl.run", "-m", "scale=smoke", "seed=1,2", f"hydra/launcher={name}"]
    command += [f"hydra.sweep.dir={tmp_path}/multirun/sweep"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ})
    assert done.returncode == 2
    assert done.stderr == f"error: hydra.sweep.dir={tmp_path}/multirun/sweep: cannot be written (Not a directory)\n"
    assert (tmp_path / "multirun").read_text() == "a file"


def test_a_launcher_without_a_sweep(tmp_path: Path) -> None:
    """Hydra would ignore the launcher and run the job here."""
    command = [sys.executable, "-m", "slaterl.run", "scale=smoke", "hydra/launcher=slurm_cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ})
    assert done.returncode == 2
    assert done.stderr == "error: hydra/launcher=slurm_cpu: only sweeps use it; add -m\n"
    assert not list(tmp_path.iterdir())


def test_slurm_that_does_not_answer(tmp_path: Path) -> None:
    """One message instead of submitit's traceback, and stage=status knows that no job will start."""
    for name, answer in {"srun": "exit 0", "sbatch": "echo sbatch: error: no controller >&2; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    sweep = tmp_path / "sweep"
    command = [sys.executable, "-m", "slaterl.run", "-m", "scale=smoke", "seed=1,2", "hydra/launcher=slurm_cpu"]
    command += [f"hydra.sweep.dir={sweep}"]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **path})
    assert done.returncode == 2
    *said, last = done.stderr.splitlines()
    assert said == ["sbatch: error: no controller"], "by sbatch, through submitit"
    assert last == "error: hydra/launcher: SLURM did not take the job: sbatch: error: no controller"
    assert [read_job(sweep / str(number)).state for number in (0, 1)] == ["failed", "failed"]


@pytest.mark.parametrize("call", ["mkdir", "tempfile"])
def test_no_permission(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a folder is there that cannot be written to. (The tests may run as root, who may write everywhere.)"""

    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    if call == "mkdir":
        monkeypatch.setattr(Path, "mkdir", denied)
    else:
        monkeypatch.setattr(launch.tempfile, "TemporaryFile", denied)
    with pytest.raises(SystemExit) as ended:
        check_folder(launcher(tmp_path / "sweep"))
    assert ended.value.code == 2 and not (tmp_path / "sweep").exists()
    assert (
        capsys.readouterr().err == f"error: hydra.sweep.dir={tmp_path}/sweep: cannot be written (Permission denied)\n"
    )


def test_check_leaves_folders_as_they_are(tmp_path: Path) -> None:
    check_folder(launcher(tmp_path / "multirun" / "sweep"))
    assert not (tmp_path / "multirun" / "sweep").exists()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "multirun.yaml").touch()
    check_folder(launcher(tmp_path / "again"))
    assert [file.name for file in (tmp_path / "again").iterdir()] == ["multirun.yaml"]


def test_record_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise UserError("job.json: cannot be written (No space left on device)")

    monkeypatch.setattr(launch, "announce", full)
    job = OmegaConf.create({"hydra": {"overrides": {"task": []}}})
    with pytest.raises(SystemExit) as ended:
        announce_jobs(launcher(tmp_path), [job], 0)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: job.json: cannot be written (No space left on device)\n"
