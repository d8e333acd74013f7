"""The logger of Weights & Biases, offline; needs the package wandb."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slaterl.errors import Interrupted, UserError
from slaterl.runs.run import Run
from slaterl.training.logger_settings import check_loggers
from tests.helpers import compose_config
from tests.training.small_run import a_run, train

wandb = pytest.importorskip("wandb")

OFFLINE = ("logger=wandb", "logger.wandb.mode=offline")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without an account or settings of wandb."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))


def log_entries(data: bytes) -> Iterator[bytes]:
    """Read wandb's file: a header of 7 bytes, then LevelDB's log format with blocks of 32 KiB."""
    at, entry = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        entry += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole entry, or the last part of one
            yield entry
            entry = b""


class Logged:
    """One folder that wandb wrote offline."""

    def __init__(self, folder: Path) -> None:
        from wandb.proto.wandb_internal_pb2 import Record

        self.rows: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        (file,) = folder.glob("*.wandb")
        for data in log_entries(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                self.rows.append({item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
            elif kind == "run":
                self.run = record.run
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "config":
                self.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            elif kind == "summary":
                self.summary |= {item.key: json.loads(item.value_json) for item in record.summary.update}
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def curve(self, name: str) -> dict[int, float]:
        return {row["trainer/global_step"]: row[name] for row in self.rows}


def logged(run: Run) -> list[Logged]:
    """In the order in which they were made."""
    folders = (run.path / "wandb").glob("offline-run-*")
    return [Logged(folder) for folder in sorted(folders, key=lambda folder: folder.stat().st_ctime_ns)]


def test_offline_run_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = compose_config(*OFFLINE, "logger.wandb.project=slates", "logger.wandb.tags=[night,2]", "agent.gamma=0.7")
    check_loggers(cfg)
    run = train(cfg, a_run(tmp_path / "outputs"))
    (found,) = logged(run)
    assert (found.run.project, found.run.display_name, found.run.job_type) == ("slates", run.path.name, "online")
    assert {"night", "2", "online", "focused_topdown", "sac", "seed1"} <= set(found.run.tags)
    assert found.config["agent"]["gamma"] == 0.7 and found.config["run"]["digest"] == run.digest
    assert found.curve("loss/critic") == {1: 0.5, 2: 1.0, 3: 1.5}
    assert found.exit_code == 0
    assert capsys.readouterr().out == ""
    assert {path.name for path in run.path.iterdir()} == {"manifest.json", "metrics.csv", ".lock", "wandb"}


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (ValueError("loss/critic is not finite"), 1, "ValueError: loss/critic is not finite"),
        (Interrupted(15), 255, "Interrupted: signal 15"),
    ],
)
def test_reason_of_the_end_is_recorded(tmp_path: Path, error: BaseException, code: int, reason: str) -> None:
    run = a_run(tmp_path)
    with pytest.raises(type(error)):
        train(compose_config(*OFFLINE), run, error=error)
    (found,) = logged(run)
    assert (found.exit_code, found.summary["ended_by"]) == (code, reason)


def test_two_trainings_in_one_process_do_not_mix(tmp_path: Path) -> None:
    cfg = compose_config(*OFFLINE)
    first, second = train(cfg, a_run(tmp_path, seed=1)), train(cfg, a_run(tmp_path, seed=2), updates=5)
    (a,), (b,) = logged(first), logged(second)
    assert (len(a.rows), len(b.rows)) == (3, 5)
    assert a.run.run_id != b.run.run_id


def test_resumed_run_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, run = compose_config(*OFFLINE), a_run(tmp_path)
    with pytest.raises(Interrupted):
        train(cfg, run, updates=4, error=Interrupted(15))
    (before,) = logged(run)
    for folder in (run.path / "wandb").glob("offline-run-*"):  # wandb names folders by the second
        folder.rename(folder.with_name(f"first-{folder.name}"))
    train(cfg, run, updates=2, start=3)
    (after,) = logged(run)
    assert before.run.run_id == after.run.run_id
    assert after.curve("start") == {1: 0, 2: 0, 3: 0, 4: 3, 5: 3}


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    run = train(compose_config("logger=wandb", "logger.wandb.mode=disabled"), a_run(tmp_path / "outputs"))
    assert {file.name for file in run.path.iterdir()} == {"manifest.json", "metrics.csv", ".lock"}


def test_online_without_login_ends_before_the_run() -> None:
    with pytest.raises(UserError, match=r"wandb login.*WANDB_API_KEY.*logger\.wandb\.mode=offline"):
        check_loggers(compose_config("logger=wandb"))


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"logger\.wandb\.mode=onlin: expected online, offline or disabled"):
        check_loggers(compose_config("logger=wandb", "logger.wandb.mode=onlin"))
    with pytest.raises(UserError, match=r"logger\.wandb\.entty: no such setting; did you mean entity\?"):
        check_loggers(compose_config(*OFFLINE, "+logger.wandb.entty=a"))
