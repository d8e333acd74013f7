"""stage=status: what it shows of a sweep, and the command that runs the missing jobs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from slaterl.errors import UserError
from slaterl.stages.status import status
from slaterl.sweeps.records import announce, recording
from tests.helpers import compose_config

CONFIG = OmegaConf.create({"seed": 1})


def a_sweep(folder: Path, *task: str, launched: float = 0.0) -> Path:
    """Three announced jobs, of which the first is finished and the second failed."""
    for number in range(3):
        announce(folder, number, ["env=focused_mix", f"seed={number}"], CONFIG)
    with recording(folder, 0, CONFIG):
        pass
    with pytest.raises(ZeroDivisionError), recording(folder, 1, CONFIG):
        raise ZeroDivisionError("a tenth of nothing")
    hydra = ["hydra/launcher=local_gpus", "hydra.launcher.cpu_slots=2", "hydra.mode=MULTIRUN"]
    OmegaConf.save({"hydra": {"overrides": {"task": list(task), "hydra": hydra}}}, folder / "multirun.yaml")
    os.utime(folder / "multirun.yaml", (launched, launched))
    return folder


def test_what_is_missing_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = a_sweep(tmp_path / "sweep", "env=focused_mix", "seed=range(0,3)", "logger=[csv,swanlab]")
    status(compose_config("stage=status", f"status.sweep={sweep}"))
    shown = capsys.readouterr()
    assert "3 jobs: 1 finished, 1 failed, 1 waiting" in shown.err
    assert shown.err.endswith("run only the missing jobs with:\n")
    assert "job 1 (seed=1) failed: ZeroDivisionError: a tenth of nothing" in shown.err
    command = "-m slaterl.run -m env=focused_mix 'seed=range(0,3)' 'logger=[csv,swanlab]' hydra/launcher=local_gpus"
    assert shown.out.endswith(f"{command} hydra.launcher.cpu_slots=2\n")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[]",
        b'{"status": 3}',
        b'{"status": "x", "overrides": 5}',
        b'{"status": "x", "total": [], "done": 3}',
    ],
)
def test_damaged_record_is_listed(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = a_sweep(tmp_path / "sweep", "seed=range(0,3)")
    (sweep / "2" / "job.json").write_bytes(content)
    (sweep / "notes").mkdir()
    (sweep / "notes" / "job.json").write_text("no job")
    status(compose_config("stage=status", f"status.sweep={sweep}"))
    shown = capsys.readouterr()
    assert "3 jobs: 1 finished, 1 failed, 1 damaged" in shown.err
    assert f"job 2 damaged: {sweep / '2' / 'job.json'}: " in shown.err
    assert "job 1 (seed=1) failed" in shown.err and "seed=range(0,3)" in shown.out


@pytest.mark.parametrize("content", [None, b"", b"a: [", b"hydra: 3", b"\xff"])
def test_damaged_command_is_one_message(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = a_sweep(tmp_path / "sweep")
    (sweep / "multirun.yaml").unlink() if content is None else (sweep / "multirun.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"multirun\.yaml: cannot be read"):
        status(compose_config("stage=status", f"status.sweep={sweep}"))
    assert "job 1 (seed=1) failed" in capsys.readouterr().err


def test_nothing_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = a_sweep(tmp_path / "sweep", "seed=1")
    for number in (1, 2):
        with recording(sweep, number, CONFIG):
            pass
    status(compose_config("stage=status", f"status.sweep={sweep}"))
    shown = capsys.readouterr()
    assert "3 jobs: 3 finished" in shown.err and shown.out == ""


def test_the_newest_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    a_sweep(tmp_path / "multirun" / "a", "seed=1", launched=2e9)
    a_sweep(tmp_path / "multirun" / "b", "seed=2", launched=1e9)
    status(compose_config("stage=status"))
    assert "seed=1 " in capsys.readouterr().out


def test_a_sweep_that_only_begins(tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").touch()
    with pytest.raises(UserError, match="its jobs are not composed yet"):
        status(compose_config("stage=status", f"status.sweep={tmp_path}"))


@pytest.mark.parametrize("arguments", [["status.sweep=nowhere"], []])
def test_no_sweep(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"status\.sweep="):
        status(compose_config("stage=status", *arguments))
