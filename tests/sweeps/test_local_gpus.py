"""hydra/launcher=local_gpus as users meet it: two slots, a mistake, a kill, Ctrl-C, the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from slaterl.sweeps.records import Job, jobs
from tests.test_end_to_end import results, rows

JOBS = ["scale=smoke", "device=cpu", "threads=1", "max_steps=600", "val_every_n_steps=200"]
LOCAL = ["hydra/launcher=local_gpus", "hydra.launcher.gpus=0", "hydra.launcher.cpu_slots=2"]


def launch(home: Path, *arguments: str, sweep: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "slaterl.run", "-m" if sweep else "stage=status", *arguments]
    command += [f"hydra.sweep.dir={sweep}"] if sweep else []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "SLATERL_HOME": str(home), "COLUMNS": "200"}
    # a shell that runs the tests in the background has its children ignore Ctrl-C
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=home.parent, env=environment, preexec_fn=heeding, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=400)
    return process.returncode, stdout, stderr


def until(happened: Callable[[], bool], launcher: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not happened():
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def training(sweep: Path) -> list[Job]:
    """The jobs that train their agent now."""
    running = [job for job in jobs(sweep) if job.state == "running"]
    return [job for job in running if job.record.get("title", "").startswith("sac") and job.record["done"] > 0]


def manifest(job: Job) -> dict:
    return json.loads((Path(job.record["run"]) / "manifest.json").read_text())


def test_a_refused_launch_leaves_no_sweep(tmp_path: Path) -> None:
    """Else stage=status would take it for the newest."""
    sweep = tmp_path / "sweep"
    refused = launch(tmp_path / "home", *JOBS, LOCAL[0], "hydra.launcher.gpus=999", "seed=1,2", sweep=sweep)
    code, _, stderr = finish(refused)
    assert code == 2 and "hydra.launcher.gpus=999" in stderr and not sweep.exists()


def test_failed_killed_stopped_and_launched_again(tmp_path: Path) -> None:
    home, sweep = tmp_path / "home", tmp_path / "sweep"
    # the second half diverges as soon as it learns
    sweeping = launch(home, *JOBS, *LOCAL, "agent.q_lr=1e-3,1e30", "seed=1,2", sweep=sweep)
    until(lambda: len(training(sweep)) > 0, sweeping)
    killed = training(sweep)[0]
    os.kill(killed.record["pid"], signal.SIGKILL)
    code, stdout, stderr = finish(sweeping)

    assert code == 1 and stdout.splitlines()[-1] == str(sweep)
    assert "3 of 4 jobs failed" in stderr and "Traceback" not in stderr, stderr
    found = jobs(sweep)
    other = found[1 - killed.number]
    assert other.state == "finished"
    assert "SIGKILL" in found[killed.number].reason and "SIGKILL" in manifest(killed)["reason"]
    for job in found[2:]:
        assert "is not finite since step" in job.reason and job.reason in manifest(job)["reason"]
    assert {job.record["slot"] for job in found} == {"cpu 0", "cpu 1"}

    code, stdout, stderr = finish(launch(home, f"status.sweep={sweep}"))
    assert code == 0 and "3 failed" in stderr and "SIGKILL" in stderr and "is not finite" in stderr
    assert "agent.q_lr=1e-3,1e30" in stdout.splitlines()[-1] and "hydra/launcher=local_gpus" in stdout.splitlines()[-1]

    again = tmp_path / "again"
    stopped = launch(home, *JOBS, *LOCAL, "seed=1,2,3", sweep=again)
    until(lambda: len(training(again)) == 2, stopped)
    workers = [job.record["pid"] for job in training(again)]
    stopped.send_signal(signal.SIGINT)
    code, _, stderr = finish(stopped)
    assert code == 130 and "Traceback" not in stderr, stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    states = {job.number: job.state for job in jobs(again)}
    assert states == {killed.number: "interrupted", other.number: "finished", 2: "interrupted"}

    code, _, stderr = finish(launch(home, *JOBS, *LOCAL, "seed=1,2,3", sweep=again))
    assert code == 0, stderr
    for number in (killed.number, 2):
        assert "resuming from step" in (again / str(number) / "log.txt").read_text()
    assert manifest(other)["starts"] == 1

    undisturbed = tmp_path / "undisturbed"
    alone = tmp_path / "alone"
    code, stdout, stderr = finish(launch(undisturbed, *JOBS, "seed=1,2,3", sweep=alone))
    assert code == 0 and stdout.splitlines()[-1] == str(alone), stderr
    expected = results(undisturbed)
    assert len(expected) == 7, "logged data once, a ranker and an agent for each seed"
    assert {name: result for name, result in results(home).items() if name in expected} == expected
    for file in undisturbed.glob("*/*/*/metrics.csv"):
        assert rows(file) == rows(home / file.relative_to(undisturbed))
