"""A sweep on a real SLURM: preempted, requeued, out of time, killed, launched again; equal to an undisturbed one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from slaterl.sweeps.records import Job, jobs
from tests.slurm.cluster import Cluster, why_not
from tests.test_end_to_end import results, rows

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

JOBS = ["scale=smoke", "device=cpu", "threads=1", "max_steps=600", "val_every_n_steps=100", "seed=1,2,3,4"]
SLURM = ["hydra/launcher=slurm_cpu", "hydra.launcher.partition=low", "hydra.launcher.timeout_min=10"]
SLURM += [f"hydra.launcher.{setting}" for setting in ("cpus_per_task=1", "mem_gb=1", "signal_delay_s=60")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    # not pytest's folder: SLURM's sockets have short names
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Cluster(Path(folder)) as running:
        yield running


def launch(home: Path, sweep: Path, *arguments: str, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "slaterl.run", "-m", *JOBS, *arguments, f"hydra.sweep.dir={sweep}"]
    environment = {**env, "SLATERL_HOME": str(home)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=home.parent, **pipes)


def until(happened: Callable[[], object], launcher: subprocess.Popen[str], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@dataclass(frozen=True)
class Frozen:
    """A job whose process is stopped, and when it had saved its agent last, in ns: 0 for not at all."""

    job: Job
    saved: int

    @property
    def number(self) -> int:
        return self.job.number

    @property
    def pid(self) -> int:
        return self.job.record["pid"]


def saved(job: Job) -> int:
    file = Path(job.record["run"]) / "last.ckpt"
    return file.stat().st_mtime_ns if file.is_file() else 0


def freeze(job: Job) -> Frozen:
    pid = job.record["pid"]
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    return Frozen(job, saved(job))


def freeze_in_training(sweep: Path, launcher: subprocess.Popen[str]) -> list[Frozen]:
    """Stop the process of every job when it trains its agent, so that whatever follows finds it there."""
    frozen: dict[int, Frozen] = {}

    def all_frozen() -> bool:
        for job in jobs(sweep):
            assert job.state in ("waiting", "running"), job
            training = job.record.get("title", "").startswith("sac") and job.record["done"] > 0
            if training and job.number not in frozen:
                frozen[job.number] = freeze(job)
        return len(frozen) == 4

    until(all_frozen, launcher)
    return [frozen[number] for number in sorted(frozen)]


def freeze_after_saving(signalled: list[Frozen], launcher: subprocess.Popen[str]) -> Frozen:
    """Stop the job of these that SLURM woke up, that saved on SIGTERM and went on: SLURM must find it when it kills."""

    def woken() -> list[Job]:
        return [frozen.job for frozen in signalled if saved(frozen.job) != frozen.saved]

    until(woken, launcher)
    (job,) = woken()
    return freeze(job)


def alive(frozen: Frozen) -> bool:
    return Path(f"/proc/{frozen.pid}").exists()


def killed_by_slurm(frozen: Frozen) -> bool:
    """SLURM wakes it once more, seconds before it kills it: time enough to be done on a fast machine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(frozen.pid, signal.SIGSTOP)
    return not alive(frozen)


def in_queue(cluster: Cluster) -> dict[str, tuple[str, datetime]]:
    """State and start of each job, by `<array>_<number>`."""
    lines = cluster.call("squeue", "-h", "-r", "-p", "low", "-o", "%i %T %S").stdout.splitlines()
    fields = [line.split() for line in lines]
    return {job: (state, datetime.fromisoformat(start)) for job, state, start in fields if start != "N/A"}


def test_disturbed_sweep_equals_undisturbed_one(cluster: Cluster, tmp_path: Path) -> None:
    home, sweep = tmp_path / "home", tmp_path / "sweep"
    launcher = launch(home, sweep, *SLURM, env=cluster.env)
    try:
        frozen = freeze_in_training(sweep, launcher)
        array = next(iter(in_queue(cluster))).split("_")[0]

        # All CPUs are taken, so SLURM preempts one of the jobs: SIGTERM, with a SIGCONT, and SIGKILL after the grace.
        assert cluster.call("sbatch", "-p", "high", "-c1", "--mem=10", "-o/dev/null", "--wrap=true").returncode == 0
        preempted = freeze_after_saving(frozen, launcher)
        until(lambda: killed_by_slurm(preempted), launcher)
        requeued, timed_out, killed = (job for job in frozen if job.number != preempted.number)

        # the same signals, KillWait for the grace
        assert cluster.call("scontrol", "requeue", f"{array}_{requeued.number}").returncode == 0
        freeze_after_saving([requeued], launcher)
        until(lambda: killed_by_slurm(requeued), launcher)

        # a limit of minutes that is near: SLURM announces it with USR2, and a SIGCONT, signal_delay_s before
        started = in_queue(cluster)[f"{array}_{timed_out.number}"][1]
        limit = int(((datetime.now() - started).total_seconds() + 15) / 60) + 1
        job = f"JobId={array}_{timed_out.number}"
        assert cluster.call("scontrol", "update", job, f"TimeLimit={limit}").returncode == 0

        os.kill(killed.pid, signal.SIGKILL)
        until(lambda: not alive(timed_out), launcher)
        # it has had its interruption: on a slow machine it would hardly get on with so short a limit
        assert cluster.call("scontrol", "update", job, "TimeLimit=10").returncode == 0
        stdout, stderr = launcher.communicate(timeout=400)
    finally:
        launcher.kill()

    assert launcher.returncode == 1
    assert "1 of 4 jobs failed" in stderr and "Traceback" not in stderr, stderr
    assert stdout.splitlines()[-1] == str(sweep)
    ended = {job.number: job for job in jobs(sweep)}
    assert {job.state for job in ended.values()} == {"finished", "failed"}
    assert ended[killed.number].state == "failed" and "SLURM: FAILED" in ended[killed.number].reason
    manifests = {
        job.number: json.loads((Path(job.record["run"]) / "manifest.json").read_text()) for job in ended.values()
    }
    assert manifests[killed.number]["status"] == "failed" and "SLURM: FAILED" in manifests[killed.number]["reason"]
    for job in (preempted, requeued, timed_out):
        assert manifests[job.number]["status"] == "finished" and manifests[job.number]["starts"] >= 2
        (log,) = sweep.glob(f".submitit/{array}_{job.number}/*.err")
        assert "resuming from step" in log.read_text()
        assert ("interrupted by signal 12" in log.read_text()) == (job is timed_out)

    finished = {
        number: Path(ended[number].record["run"]) / "result.json" for number in ended if number != killed.number
    }
    before = {file: file.stat().st_mtime_ns for file in finished.values()}
    again = launch(home, tmp_path / "again", *SLURM, env=cluster.env)
    _, stderr = again.communicate(timeout=400)
    assert again.returncode == 0, stderr
    assert {file: file.stat().st_mtime_ns for file in finished.values()} == before
    assert json.loads((Path(ended[killed.number].record["run"]) / "manifest.json").read_text())["starts"] == 2

    undisturbed = tmp_path / "undisturbed"
    alone = launch(undisturbed, tmp_path / "alone", env=dict(os.environ))
    _, stderr = alone.communicate(timeout=400)
    assert alone.returncode == 0, stderr
    assert len(results(home)) == 1 + 4 + 4, "logged data once, a ranker and an agent for each seed"
    assert results(home) == results(undisturbed)
    for file in home.glob("*/*/*/metrics.csv"):
        assert rows(file) == rows(undisturbed / file.relative_to(home))
