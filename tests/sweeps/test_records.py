"""Records of jobs: what they say while a job runs, when it ends, and when it can no longer say anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from slaterl.console import progress, tell
from slaterl.errors import Interrupted, UserError
from slaterl.paths import CONF
from slaterl.sweeps import records
from slaterl.sweeps.launch import conclude, mark_killed
from slaterl.sweeps.records import announce, assign, jobs, read_job, recording
from slaterl.sweeps.table import label_jobs

CONFIG = OmegaConf.create({"seed": 1, "ranker_seed": "${seed}", "agent": {"q_lr": 1e-3}})


def with_hydra(config: DictConfig) -> DictConfig:
    """As the launcher has it; the job gets it without `hydra`."""
    return OmegaConf.merge(config, {"hydra": {"job": {"num": 0}}})  # type: ignore[return-value]


@pytest.fixture
def announced(tmp_path: Path) -> Path:
    """The folder of job 0, before it starts."""
    announce(tmp_path, 0, ["seed=1", "scale=smoke"], with_hydra(CONFIG))
    return tmp_path / "0"


def test_a_job_tells_of_itself(announced: Path) -> None:
    sweep = announced.parent
    assert read_job(announced).state == "waiting"
    assign(announced, "cpu 1")
    with recording(sweep, 0, CONFIG):
        running = read_job(announced)
        assert running.state == "running" and running.record["pid"] == os.getpid()
        assert running.record["slot"] == "cpu 1" and running.record["overrides"] == ["seed=1", "scale=smoke"]
        tell(run="outputs/online/a")
        tell(run="outputs/pretrain/b")  # an input, made on the way
        with progress("sac on tiny", 60, "steps", start=20) as show:
            show(30)
            show(40, score=float("nan"))
        tell(title="test")
        record = read_job(announced).record
    assert (record["run"], record["title"], record["done"], record["total"]) == ("outputs/online/a", "test", 40, 60)
    assert record["score"] is None
    assert read_job(announced).state == "finished"
    with recording(sweep, 0, CONFIG):  # again, in the same folder
        assert "run" not in read_job(announced).record and "score" not in read_job(announced).record


def test_progress_is_written_once_a_second(announced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(records, "write_json", lambda file, entries: written.append(dict(entries)))
    with recording(announced.parent, 0, CONFIG), progress("log data", 1000, "trajectories") as show:
        before = len(written)
        for done in range(1000):
            show(done)
        assert len(written) == before


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UserError("gamma=2: expected less"), "failed", "gamma=2: expected less"),
        (ZeroDivisionError("a tenth of nothing"), "failed", "ZeroDivisionError: a tenth of nothing"),
        (Interrupted(signal.SIGTERM), "interrupted", "signal 15"),
    ],
)
def test_how_a_job_ended(announced: Path, error: BaseException, state: str, reason: str) -> None:
    with pytest.raises(type(error)), recording(announced.parent, 0, CONFIG):
        raise error
    found = read_job(announced)
    assert (found.state, found.reason) == (state, reason)


def test_conf_that_changed_while_the_job_waited(announced: Path) -> None:
    changed = OmegaConf.merge(CONFIG, {"agent": {"q_lr": 2e-3}})
    message = r"agent.q_lr: conf/ has changed since this sweep was launched"
    with pytest.raises(UserError, match=message), recording(announced.parent, 0, changed):  # type: ignore[arg-type]
        raise AssertionError("the job must not start")
    assert read_job(announced).state == "failed"


def test_killed_job_is_told_from_a_running_one(announced: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    script = (
        "import sys, pathlib, omegaconf, json\n"
        "from slaterl.runs.run import Run\n"
        "from slaterl.sweeps.records import recording\n"
        f"run = Run(pathlib.Path({str(run)!r}), 'online', 'tiny', 'sac', {{}})\n"
        f"cfg = omegaconf.OmegaConf.create({OmegaConf.to_container(CONFIG)!r})\n"
        f"with recording(pathlib.Path({str(tmp_path)!r}), 0, cfg), run.making(cfg, {{}}):\n"
        "    print('running', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"running\n"
        assert read_job(announced).state == "running"
        process.kill()
    killed = read_job(announced)
    assert killed.state == "killed" and killed.reason
    manifest = next(run.glob("*/*/*/manifest.json"))
    assert json.loads(manifest.read_text())["status"] == "running"

    mark_killed(announced, "SLURM: OUT_OF_MEMORY")
    assert (read_job(announced).state, read_job(announced).reason) == ("failed", "SLURM: OUT_OF_MEMORY")
    found = json.loads(manifest.read_text())
    assert (found["status"], found["reason"]) == ("failed", "SLURM: OUT_OF_MEMORY")


def test_a_reason_of_its_own_is_kept(announced: Path) -> None:
    with pytest.raises(UserError), recording(announced.parent, 0, CONFIG):
        raise UserError("its own reason")
    mark_killed(announced, "another")
    assert read_job(announced).reason == "its own reason"


def test_full_disk_does_not_end_the_launcher(
    announced: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, value: dict[str, Any]) -> None:
        raise UserError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(records, "write_json", full)
    assign(announced, "cpu 1")
    mark_killed(announced, "SIGKILL")
    launcher = SimpleNamespace(config=OmegaConf.create({"hydra": {"sweep": {"dir": str(announced.parent)}}}))
    failed = JobReturn(status=JobStatus.FAILED, _return_value=UserError("last.ckpt: No space left on device"))
    conclude(launcher, [failed], 0)
    assert "job 0 (seed=1 scale=smoke) failed: last.ckpt: No space left on device" in capsys.readouterr().err


def test_jobs_are_labelled_by_what_differs(tmp_path: Path) -> None:
    for number in (0, 1, 10, 2):
        announce(tmp_path, number, ["scale=smoke", "env=focused_mix", f"seed={number}"], with_hydra(CONFIG))
    found = jobs(tmp_path)
    assert [job.number for job in found] == [0, 1, 2, 10]
    assert label_jobs(found) == {number: f"seed={number}" for number in (0, 1, 2, 10)}
    assert label_jobs(found[:1]) == {0: "scale=smoke env=focused_mix seed=0"}


def test_two_sweeps_of_one_second_have_two_folders() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        folders = {compose("config", return_hydra_config=True).hydra.sweep.dir for _ in range(2)}
    assert len(folders) == 2
