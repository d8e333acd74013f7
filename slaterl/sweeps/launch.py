"""Shared by all launchers: announce jobs before they start, and report failed jobs at the end."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, open_dict

from slaterl.console import note
from slaterl.errors import UserError
from slaterl.runs.run import record_death
from slaterl.sweeps.records import announce, end_killed, read_job

MANY = 50  # composing more jobs than this takes long enough for a message


def sweep_folder(launcher: Any) -> Path:
    return Path(launcher.config.hydra.sweep.dir)


def check_folder(launcher: Any) -> None:
    """End the command with one message if the sweep's folder cannot be made or written. Leave no folder behind.

    Hydra makes the folder after the launcher's `setup`, and shows a traceback if it cannot.
    """
    folder = sweep_folder(launcher)
    there = folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # an empty file can be made even on a full disk
    except OSError as error:
        refuse(launcher, UserError(f"hydra.sweep.dir={folder}: cannot be written ({error.strerror})"))
    finally:
        if not there:
            with contextlib.suppress(OSError):
                folder.rmdir()


def refuse(launcher: Any, error: UserError) -> NoReturn:
    """End the command before any job exists. stage=status would take a folder without jobs for the newest sweep."""
    folder = sweep_folder(launcher)
    if folder.is_dir() and [file.name for file in folder.iterdir()] == ["multirun.yaml"]:
        shutil.rmtree(folder)
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def compose_jobs(launcher: Any, job_overrides: Sequence[Sequence[str]], first: int) -> list[DictConfig]:
    """Compose the configuration of every job, `hydra` included. `first` is the number of the first job."""
    configs = []
    if len(job_overrides) > MANY:
        note(f"composing {len(job_overrides)} jobs")
    for number, overrides in enumerate(job_overrides, start=first):
        config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        configs.append(config)
    return configs


def announce_jobs(launcher: Any, configs: Sequence[DictConfig], first: int) -> None:
    """Write a record for every job, so that stage=status shows those that did not start."""
    try:
        for number, config in enumerate(configs, start=first):
            announce(sweep_folder(launcher), number, config.hydra.overrides.task, config)
    except UserError as error:
        refuse(launcher, error)


def mark_killed(folder: Path, reason: str) -> None:
    """Record in job.json and in the run's manifest why a job ended, if it could not do so itself."""
    job = read_job(folder)
    if not job.told:
        with contextlib.suppress(UserError):  # if the disk is full, the launcher still prints the reason
            end_killed(folder, reason)
            if "run" in job.record:
                record_death(Path(job.record["run"]), reason)


def lost(config: DictConfig, reason: str) -> JobReturn:
    """Make a result for Hydra of a job that returned none."""
    overrides = list(config.hydra.overrides.task)
    return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=RuntimeError(reason))


def conclude(launcher: Any, returns: Sequence[JobReturn], first: int) -> Sequence[JobReturn]:
    """Print which jobs failed and why. The last line on stdout is the sweep's folder.

    Hydra raises the exception of the first failed job and exits with status 1. This replaces it by one that counts all
    failed jobs and is shown without a traceback.
    """
    folder = sweep_folder(launcher)
    failed = [number for number, job in enumerate(returns, start=first) if job.status != JobStatus.COMPLETED]
    for number in failed:
        job = read_job(folder / str(number))
        # on a full disk a job could not write down how it ended
        state, reason = (job.state, job.reason) if job.told else ("failed", str(returns[number - first]._return_value))
        note(f"job {number} ({' '.join(job.record.get('overrides', []))}) {state}: {reason}")
        message = f"{len(failed)} of {len(returns)} jobs failed; rerun the same command to run only the missing ones"
        returns[number - first].return_value = CompactHydraException(message)
    print(folder)
    return returns
