"""Loggers: chosen and checked on the command line, what SwanLab's files hold, how a run ends in them and goes on."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NoReturn

import lightning
import pytest
import torch
import urllib3
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from swanlab.proto.swanlab.record.v1.record_pb2 import Record
from swanlab.proto.swanlab.run.v1.run_pb2 import RunState
from swanlab.sdk.internal.core_python.store import DataStoreReader
from torch import Tensor, nn

from slaterl.errors import Interrupted, UserError
from slaterl.runs.run import Run
from slaterl.training.loggers import check_loggers, logging_to, make_loggers
from slaterl.training.metrics import MetricsFile
from tests.helpers import compose_config

OFFLINE = ("logger=swanlab", "logger.mode=offline")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without an account, a network, or settings of SwanLab."""

    def refuse(*_: Any) -> NoReturn:
        raise OSError("no network in tests")

    for name in [name for name in os.environ if name.startswith("SWANLAB_")]:
        monkeypatch.delenv(name)
    for folder in ("home", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(socket.socket, "connect", refuse)


class Line(lightning.LightningModule):
    """The smallest module that Lightning trains."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor) -> Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Rows(lightning.Callback):
    """Logs as `fit` does: one row an update, counted from the step that the run goes on from."""

    COLUMNS = ("step", "loss/critic", "train/return", "start")

    def __init__(self, file: Path, start: int, error: BaseException | None) -> None:
        self.metrics, self.start, self.error = MetricsFile(file, self.COLUMNS, start), start, error
        self.step = start

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.step += 1
        row = {"loss/critic": 0.5 * self.step, "train/return": math.nan if self.step == 1 else 9.5, "start": self.start}
        self.metrics.append({"step": self.step, **row})
        for logger in trainer.loggers:
            logger.log_metrics(row, self.step)

    def on_train_end(self, *_: Any) -> None:
        self.metrics.close()
        if self.error:
            raise self.error


def a_run(root: Path, seed: int = 1) -> Run:
    return Run(root, "online", "focused_topdown", f"sac-gems-seed{seed}", {"agent": {"gamma": 0.8}, "seed": seed})


def train(cfg: DictConfig, run: Run, updates: int = 3, start: int = 0, error: BaseException | None = None) -> Run:
    """A stage in small: the manifest, the loggers, a Trainer that has them."""
    with run.making(cfg, {}):
        loggers = make_loggers(cfg, run)
        file = run.path / "metrics.csv"
        with logging_to(loggers, file, start):
            trainer = lightning.Trainer(
                accelerator="cpu",
                max_epochs=1,
                log_every_n_steps=1,
                logger=loggers or False,
                callbacks=[Rows(file, start, error)],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(Line(), torch.zeros(updates, 1))
    return run


class Logged:
    """One folder that SwanLab wrote."""

    def __init__(self, folder: Path) -> None:
        self.points: dict[str, dict[int, float]] = defaultdict(dict)
        config = yaml.safe_load((folder / "files" / "config.yaml").read_text())
        self.config = {key: entry["value"] for key, entry in config.items()}
        reader = DataStoreReader()
        reader.open(next(folder.glob("*.swanlab")))
        for content in reader:
            record = Record.FromString(content)
            if record.HasField("start"):
                self.start = record.start
            if record.HasField("finish"):
                self.state, self.error = RunState.Name(record.finish.state), record.finish.error
            if record.HasField("scalar"):
                self.points[record.scalar.key][record.scalar.step] = record.scalar.value.number


def logged(run: Run) -> list[Logged]:
    """In the order of their making."""
    folders = (run.path / "swanlog").glob("run-*")
    return [Logged(folder) for folder in sorted(folders, key=lambda folder: folder.stat().st_ctime_ns)]


@pytest.mark.parametrize(
    ("chosen", "settings"),
    [
        ([], set()),
        (["logger=csv"], set()),
        (["logger=[]"], set()),
        (["logger=swanlab"], {"mode", "project", "workspace", "tags"}),
        (["logger=[csv,swanlab]"], {"mode", "project", "workspace", "tags"}),
        (["logger=[swanlab,csv]"], {"mode", "project", "workspace", "tags"}),
    ],
)
def test_group_takes_any_number_of_loggers(tmp_path: Path, chosen: list[str], settings: set[str]) -> None:
    cfg = compose_config(*chosen, *(["logger.mode=offline", "logger.tags=[a,b]"] if settings else []))
    assert set(cfg.get("logger") or {}) == settings
    check_loggers(cfg)
    assert len(make_loggers(cfg, a_run(tmp_path))) == bool(settings)


def test_csv_alone_imports_no_swanlab() -> None:
    code = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from slaterl.training.loggers import check_loggers, logging_to, make_loggers
cfg = OmegaConf.create({"logger": {}})
check_loggers(cfg)
with logging_to(make_loggers(cfg, None), Path("metrics.csv"), 0):
    pass
assert not {"swanlab", "lightning", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["logger=swanlab", "logger.mode=onlin"], "logger.mode=onlin: expected cloud, local, offline or disabled"),
        ([*OFFLINE, "+logger.mod=local"], "logger.mod: no such setting; there are mode, project, workspace, tags"),
        (["+logger.mode=offline"], "logger.mode: only SwanLab has settings; add logger=swanlab"),
        ([*OFFLINE, "logger.tags=abc"], "logger.tags=abc: expected a list"),
        ([*OFFLINE, "logger.project='my project'"], "logger.project=my project: String should match"),
        ([*OFFLINE, "logger.project=null"], "logger.project=null: expected a name"),
        ([*OFFLINE, "logger.workspace=a/b"], "logger.workspace=a/b: String should match"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        check_loggers(compose_config(*overrides))
    assert str(raised.value).startswith(message)


def test_cloud_without_login_ends_at_once() -> None:
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"swanlab login.*SWANLAB_API_KEY.*logger\.mode=offline"):
        check_loggers(compose_config("logger=swanlab"))
    assert time.perf_counter() - start < 3


def test_cloud_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_API_KEY", "a" * 21)
    monkeypatch.setattr(urllib3.Retry, "sleep", lambda *_: None)
    with pytest.raises(UserError, match=r"did not answer or refused.*logger\.mode=offline"):
        check_loggers(compose_config("logger=swanlab"))


def test_local_names_the_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"swanboard; pip install 'swanlab\[dashboard\]'"):
        check_loggers(compose_config("logger=swanlab", "logger.mode=local"))


def test_offline_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = compose_config(*OFFLINE, "logger.project=slates", "logger.tags=[night,2]", "agent.gamma=0.7")
    check_loggers(cfg)
    run = train(cfg, a_run(tmp_path / "outputs"))
    (found,) = logged(run)
    assert (found.start.project, found.start.name) == ("slates", run.path.name)
    assert {"night", "2", "online", "focused_topdown", "sac", cfg.ranker.name, "seed1"} <= set(found.start.tags)
    assert found.config["agent"]["gamma"] == 0.7
    names = {"stage": "online", "env": "focused_topdown", "agent": "sac", "ranker": cfg.ranker.name, "seed": 1}
    assert found.config["run"] == {**names, "digest": run.digest}
    assert found.points["loss/critic"] == {1: 0.5, 2: 1.0, 3: 1.5}
    assert math.isnan(found.points["train/return"].pop(1))
    assert found.points["train/return"] == {2: 9.5, 3: 9.5}
    assert (found.state, found.error) == ("RUN_STATE_FINISHED", "")
    assert not any((tmp_path / "home").iterdir())
    assert not any((tmp_path / "work").iterdir())
    assert capsys.readouterr().out == ""


def test_runs_of_a_sweep_share_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the sweep is launched again, at another time and with other settings of the logger."""

    def start_of(launched: str, seed: int, *command: str, experiment: str | None = None) -> Any:
        sweep = tmp_path / launched
        choices = {"experiment": experiment, "params": "params2"}
        hydra: dict[str, Any] = {"overrides": {"task": list(command)}, "runtime": {"choices": choices}}
        hydra |= {"mode": RunMode.MULTIRUN, "sweep": {"dir": str(sweep)}}
        sweep.mkdir(exist_ok=True)
        OmegaConf.save({"hydra": hydra}, sweep / "multirun.yaml")
        monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))
        (found,) = logged(train(compose_config(*OFFLINE), a_run(tmp_path / launched / "outputs", seed)))
        assert found.config["run"]["params"] == "params2" and "params2" in found.start.tags
        assert found.start.job_type == "online"
        return found.start.group

    first = start_of("first", 1, "seed=1,2", "logger=swanlab")
    assert first == start_of("first", 2, "seed=1,2", "logger=swanlab")
    assert first == start_of("again", 2, "logger=[csv,swanlab]", "seed=1,2")
    assert first != start_of("other", 1, "seed=1,2,3", "logger=swanlab")
    assert start_of("preset", 1, "experiment=replication", experiment="replication").startswith("replication-")


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    run = train(compose_config("logger=swanlab", "logger.mode=disabled"), a_run(tmp_path / "outputs"))
    assert {file.name for file in run.path.iterdir()} == {"manifest.json", "metrics.csv", ".lock"}


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (ValueError("loss/critic is not finite"), "RUN_STATE_CRASHED", "ValueError: loss/critic is not finite"),
        (Interrupted(15), "RUN_STATE_ABORTED", "Interrupted: signal 15"),
    ],
)
def test_what_ended_a_run_is_told(tmp_path: Path, error: BaseException, state: str, reason: str) -> None:
    run = a_run(tmp_path)
    with pytest.raises(type(error)):
        train(compose_config(*OFFLINE), run, error=error)
    (found,) = logged(run)
    assert (found.state, found.error) == (state, reason)
    assert set(found.points["loss/critic"]) == {1, 2, 3}


def test_two_trainings_in_one_process_do_not_mix(tmp_path: Path) -> None:
    cfg = compose_config(*OFFLINE)
    first, second = train(cfg, a_run(tmp_path, seed=1)), train(cfg, a_run(tmp_path, seed=2), updates=5)
    (a,), (b,) = logged(first), logged(second)
    assert (set(a.points["start"]), set(b.points["start"])) == ({1, 2, 3}, {1, 2, 3, 4, 5})
    assert a.start.id != b.start.id
    assert (a.start.name, b.start.name) == (first.path.name, second.path.name)


def test_a_run_that_goes_on_is_one_run(tmp_path: Path) -> None:
    cfg, run = compose_config(*OFFLINE), a_run(tmp_path)
    with pytest.raises(Interrupted):
        train(cfg, run, updates=4, error=Interrupted(15))
    train(cfg, run, updates=2, start=3)  # the last checkpoint was that of step 3
    before, after = logged(run)
    assert before.start.id == after.start.id
    assert after.state == "RUN_STATE_FINISHED"
    # SwanLab begins another folder; what was logged up to the checkpoint is in it, too
    assert after.points["loss/critic"] == {1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0, 5: 2.5}
    assert after.points["start"] == {1: 0, 2: 0, 3: 0, 4: 3, 5: 3}


def test_a_run_made_anew_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for number in (1, 2):
        monkeypatch.setattr("slaterl.runs.run._now", lambda day=number: f"2025-01-0{day}T00:00:00+0000")
        (found,) = logged(train(compose_config(*OFFLINE), a_run(tmp_path / str(number))))
        ids.append(found.start.id)
    assert ids[0] != ids[1]
    assert all(len(name) == 21 and name.isalnum() and name.islower() for name in ids)


def test_a_start_that_fails_is_told_in_one_sentence(tmp_path: Path) -> None:
    cfg, run = compose_config(*OFFLINE), a_run(tmp_path)
    run.path.mkdir(parents=True)
    (run.path / "swanlog").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="SwanLab cannot start"):
        train(cfg, run)
