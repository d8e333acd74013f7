"""Runs: a directory that follows from what determines it, a manifest that says how it ended, a lock that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from slaterl.errors import Interrupted, UserError
from slaterl.runs import run as runs
from slaterl.runs.files import write_json, write_text
from slaterl.runs.run import Run
from slaterl.runs.signals import handling

CONFIG = OmegaConf.create({"seed": 7, "twice": "${seed}", "agent": {"name": "sac", "q_hidden": [8, 8]}})
SPEC: dict[str, Any] = {
    "env": {"name": "tiny", "sizes": {"items": 30, "slots": 4}, "boost": None},
    "agent": {"gamma": 0.8, "q_hidden": [256, 128]},
    "ranker": "0123abcd",
    "seed": 0,
    "force": False,
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(root=tmp_path, stage="online", env="tiny", name="sac-seed0", spec=SPEC)


def make(run: Run, config: DictConfig = CONFIG, **inputs: Run) -> bool:
    """A stage that has nothing to do but to be recorded. Returns whether it was needed."""
    with run.making(config, inputs) as needed:
        return needed


def reordered(value: Any) -> Any:
    """The same with the keys of every dictionary the other way round."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return value


def variations(value: Any) -> Iterator[Any]:
    """Copies that differ in one value, one missing key, or one key more, at any depth."""
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            for other in variations(value[key]):
                yield {**value, key: other}
        yield {**value, "another": 1}
    elif isinstance(value, list):
        yield value[::-1]
        yield value[:-1]
    elif isinstance(value, bool) or value is None:
        yield not value
    elif isinstance(value, str):
        yield value + "x"
    else:
        yield value + 1


def test_digest_changes_with_any_value(run: Run) -> None:
    specs = [SPEC, *variations(SPEC)]
    assert len(specs) > 20
    assert len({replace(run, spec=spec).digest for spec in specs}) == len(specs)
    assert replace(run, stage="pretrain").digest != run.digest


def test_digest_does_not_depend_on_the_keys_order(run: Run) -> None:
    other = replace(run, spec=reordered(SPEC))
    assert list(other.spec) != list(SPEC)
    assert other.digest == run.digest and other.path == run.path


def test_digest_changes_with_the_generation_of_products(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run.digest
    monkeypatch.setitem(runs.PRODUCTS, run.stage, 99)
    assert run.digest != before


def test_path_reads_well(run: Run, tmp_path: Path) -> None:
    assert run.path == tmp_path / "online" / "tiny" / f"sac-seed0-{run.digest}"


def test_made_once(run: Run) -> None:
    assert not run.finished and run.manifest == {}
    assert make(run) is True
    assert run.finished
    before = (run.path / "manifest.json").read_bytes()
    assert make(run) is False
    assert (run.path / "manifest.json").read_bytes() == before


def test_manifest_tells_what_was_run(run: Run, tmp_path: Path) -> None:
    ranker = Run(tmp_path, "pretrain", "tiny", "gems", {"seed": 1})
    make(run, ranker=ranker)
    manifest = run.manifest
    assert manifest["status"] == "finished" and manifest["stage"] == "online" and manifest["spec"] == SPEC
    assert manifest["config"] == {"seed": 7, "twice": 7, "agent": {"name": "sac", "q_hidden": [8, 8]}}
    assert manifest["inputs"] == {"ranker": {"path": str(ranker.path), "digest": ranker.digest}}
    assert {"slaterl", "torch"} <= set(manifest["versions"])
    assert manifest["threads"] == torch.get_num_threads()
    assert manifest["starts"] == 1 and manifest["started"] <= manifest["ended"]


@pytest.mark.parametrize(
    ("setting", "resumes", "recorded", "used"),
    [
        ("auto", True, 1, 1),  # its result stays equal bit for bit
        ("auto", False, 1, 2),  # nothing was saved, so it starts again
        ("auto", True, None, 2),  # from an older version
        (2, True, 1, 2),
    ],
)
def test_auto_resumes_with_the_number_of_threads_of_the_run(
    setting: int | str, resumes: bool, recorded: int | None, used: int, run: Run
) -> None:
    make(run)
    manifest = {key: value for key, value in run.manifest.items() if key != "threads"}
    more = {"status": "interrupted", **({} if recorded is None else {"threads": recorded})}
    write_json(run.path / "manifest.json", {**manifest, **more})
    if resumes:
        (run.path / "last.ckpt").touch()
    torch.set_num_threads(2)
    assert make(run, OmegaConf.create({"threads": setting}))
    assert run.manifest["threads"] == used
    assert run.manifest.get("earlier_threads") == ([1] if (setting, resumes) == (2, True) else None)


def test_changed_code_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Of the class, or of one that it is built on; it makes no other run."""
    folder = tmp_path / "methods_of_mine"
    folder.mkdir()
    (folder / "ground.py").write_text("class Ground: pass")
    (folder / "own.py").write_text("from methods_of_mine.ground import Ground\nclass Own(Ground): pass")
    monkeypatch.syspath_prepend(tmp_path)
    run = Run(tmp_path, "online", "tiny", "own", {"agent": {"_target_": "methods_of_mine.own.Own", "gamma": 0.8}})
    assert make(run) is True and list(run.manifest["code"]) == ["methods_of_mine.ground", "methods_of_mine.own"]
    assert make(run) is False and "warning" not in capsys.readouterr().err
    (folder / "ground.py").write_text("class Ground: gamma = 1")
    told = "warning: the code of methods_of_mine.ground changed since this was made; remove the folder to make it again"
    assert make(run) is False
    assert f"{told}: {run.path}" in capsys.readouterr().err
    agent = Run(tmp_path, "online", "tiny", "of_that", {"seed": 1})  # also of what a run starts from
    make(agent, ranker=run)
    assert f"{told}: {run.path}" in capsys.readouterr().err

    # it goes on from what the old code left, and has not forgotten that when it is finished
    write_json(run.path / "manifest.json", {**run.manifest, "status": "failed"})
    (run.path / "last.ckpt").touch()
    assert make(run) is True and told in capsys.readouterr().err
    assert make(run) is False and told in capsys.readouterr().err

    # begun anew it is of the new code alone
    write_json(run.path / "manifest.json", {**run.manifest, "status": "failed"})
    (run.path / "last.ckpt").unlink()
    assert make(run) is True and make(run) is False and "warning" not in capsys.readouterr().err


def test_running_while_it_runs(run: Run) -> None:
    with run.making(CONFIG, {}):
        assert run.manifest["status"] == "running" and "ended" not in run.manifest
        assert not run.finished


def test_failure_is_recorded_and_tried_again(run: Run) -> None:
    with pytest.raises(ZeroDivisionError), run.making(CONFIG, {}):
        raise ZeroDivisionError("a tenth of nothing")
    manifest = run.manifest
    assert manifest["status"] == "failed" and manifest["reason"] == "ZeroDivisionError: a tenth of nothing"
    assert make(run) is True
    assert run.manifest["starts"] == 2 and run.manifest["started"] == manifest["started"]
    assert "reason" not in run.manifest and run.finished


def test_lock_ends_with_the_block(run: Run) -> None:
    """Whichever way the block ends; with `timeout=0`, a lock that is still held raises."""
    with pytest.raises(ZeroDivisionError), run.making(CONFIG, {}):
        raise ZeroDivisionError
    for needed in (True, False):
        with FileLock(run.path / ".lock", timeout=0):
            pass
        assert make(run) is needed
    with FileLock(run.path / ".lock", timeout=0):
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_is_no_exception_is_a_failure_too(run: Run, error: BaseException) -> None:
    with pytest.raises(type(error)), run.making(CONFIG, {}):
        raise error
    assert run.manifest["status"] == "failed"


def test_second_signal_while_the_first_is_recorded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two quick Ctrl-C: the manifest must not stay "running"."""

    def stop(signum: int, frame: object) -> None:
        raise Interrupted(signum)

    def interrupted(path: Path, text: str) -> None:
        signal.raise_signal(signal.SIGINT)
        write_text(path, text)

    with pytest.raises(Interrupted), handling(stop=stop, save=stop), run.making(CONFIG, {}):
        monkeypatch.setattr("slaterl.runs.files.write_text", interrupted)
        raise Interrupted(signal.SIGINT, "saved")
    assert run.manifest["status"] == "interrupted"


def test_interruption_is_recorded(run: Run) -> None:
    with pytest.raises(Interrupted), run.making(CONFIG, {}):
        raise Interrupted(signal.SIGTERM)
    manifest = run.manifest
    assert manifest["status"] == "interrupted" and "15" in manifest["reason"] and "ended" in manifest
    assert make(run) is True


def test_full_disk_does_not_hide_the_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: Any) -> None:
        raise UserError(f"{path}: cannot be written (No space left on device)")

    with pytest.raises(ZeroDivisionError), run.making(CONFIG, {}):
        monkeypatch.setattr(runs, "write_json", full)
        raise ZeroDivisionError


def test_damaged_manifest_is_named(run: Run) -> None:
    make(run)
    content = (run.path / "manifest.json").read_text()
    (run.path / "manifest.json").write_text(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"manifest.json: cannot be read"):
        make(run)


def test_missing_result_is_named(run: Run) -> None:
    with pytest.raises(UserError, match=r"result.json: cannot be read"):
        run.result()


def test_root_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"occupied.*cannot be written"):
        make(replace(run, root=tmp_path / "occupied"))


def test_json_is_replaced_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def write_half(self: Path, text: str, **how: str) -> None:
        with open(self, "w") as file:
            file.write(text[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(UserError, match=r"result.json: cannot be written \(No space"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_json_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"result.json: cannot be written"):
        write_json(tmp_path / "occupied" / "result.json", {})


HOLDER = """
import sys, pathlib, json
from omegaconf import OmegaConf
from slaterl.runs.run import Run
run = Run(root=pathlib.Path(sys.argv[1]), stage="online", env="tiny", name="sac-seed0", spec=json.loads(sys.argv[2]))
with run.making(OmegaConf.create({}), {}) as needed:
    print("held", needed, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def another_process(run: Run) -> Iterator[subprocess.Popen[str]]:
    """A process that makes the run until it reads a line or is killed."""
    command = [sys.executable, "-c", HOLDER, str(run.root), json.dumps(run.spec)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held True\n"
            yield process
        finally:
            process.kill()


@contextmanager
def waiting(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Make the run in a thread; inside, it waits for the lock, and afterwards it has told whether it was needed."""
    waits, found = threading.Event(), []
    monkeypatch.setattr(runs, "note", lambda message: waits.set())
    thread = threading.Thread(target=lambda: found.append(make(run)), daemon=True)
    thread.start()
    assert waits.wait(30), "did not say that it waits"
    assert found == []
    yield found
    thread.join(30)
    assert not thread.is_alive()


def test_who_waits_sees_it_finished(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with another_process(run) as process:
        with waiting(run, monkeypatch) as found:
            process.communicate("go on\n")
        assert found == [False]
    assert run.manifest["starts"] == 1


def test_lock_ends_with_a_killed_process(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with another_process(run) as process:
        with waiting(run, monkeypatch) as found:
            os.kill(process.pid, signal.SIGKILL)
        assert found == [True]
    assert run.finished and run.manifest["starts"] == 2


def test_command_of_a_job_is_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["submitit/core/_submit.py", "multirun/a/.submitit/%j"])
    hydra = {"mode": RunMode.MULTIRUN, "overrides": {"task": ["scale=smoke", "seed=2"]}}
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))
    make(run)
    assert run.manifest["command"][1:] == ["scale=smoke", "seed=2"]


def test_signal_while_the_manifest_is_first_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that says running, without a process, would be that of a killed run."""

    def interrupted(path: Path, value: Any) -> None:
        write_json(path, value)
        monkeypatch.undo()
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr("slaterl.runs.run.write_json", interrupted)
    with pytest.raises(Interrupted):
        make(run)
    assert run.manifest["status"] == "interrupted"
