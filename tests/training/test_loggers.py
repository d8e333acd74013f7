"""Loggers: how they are chosen and checked, what SwanLab's files hold, how a run ends in them and resumes."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest
import urllib3
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from swanlab.proto.swanlab.record.v1.record_pb2 import Record
from swanlab.proto.swanlab.run.v1.run_pb2 import RunState
from swanlab.sdk.internal.core_python.store import DataStoreReader

from slaterl.errors import Interrupted, UserError
from slaterl.runs.run import Run
from slaterl.training.logger_settings import check_loggers, check_overrides
from slaterl.training.loggers import make_loggers
from tests.helpers import compose_config
from tests.training.small_run import a_run, train

OFFLINE = ("logger=swanlab", "logger.swanlab.mode=offline")


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
    ("chosen", "names"),
    [
        ([], set()),
        (["logger=csv"], set()),
        (["logger=[]"], set()),
        (["logger=swanlab"], {"swanlab"}),
        (["logger=[csv,swanlab]"], {"swanlab"}),
        (["logger=[swanlab,csv]"], {"swanlab"}),
        (["logger=[csv,tensorboard,swanlab,wandb,mlflow]"], {"swanlab", "tensorboard", "wandb", "mlflow"}),
    ],
)
def test_group_takes_any_number_of_loggers(chosen: list[str], names: set[str]) -> None:
    cfg = compose_config(*chosen)
    assert set(cfg.get("logger") or {}) == names


@pytest.mark.parametrize("chosen", [["logger=[]"], ["logger=csv"], ["logger=swanlab"], ["logger=[csv,swanlab]"]])
def test_chosen_loggers_are_made(tmp_path: Path, chosen: list[str]) -> None:
    settings = ["logger.swanlab.mode=offline", "logger.swanlab.tags=[a,b]"] if "swanlab" in chosen[0] else []
    cfg = compose_config(*chosen, *settings)
    check_loggers(cfg)
    assert len(make_loggers(cfg, a_run(tmp_path))) == bool(settings)
    if settings:
        assert set(cfg.logger.swanlab) == {"_target_", "mode", "project", "workspace", "tags"}


def test_csv_alone_imports_no_swanlab() -> None:
    code = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from slaterl.training.logger_settings import check_loggers, check_overrides
from slaterl.training.loggers import LogRow, logging_to, make_loggers
cfg = OmegaConf.create({"logger": {}})
check_loggers(cfg)
with logging_to(make_loggers(cfg, None), Path("metrics.csv"), 0) as log_row:
    log_row({}, 1)
assert not {"swanlab", "lightning", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["logger=swanlab", "logger.swanlab.mode=onlin"],
            "logger.swanlab.mode=onlin: expected cloud, local, offline or disabled",
        ),
        ([*OFFLINE, "+logger.swanlab.mod=local"], "logger.swanlab.mod: no such setting; did you mean mode?"),
        (
            [*OFFLINE, "+logger.swanlab.colour=red"],
            "logger.swanlab.colour: no such setting; there are mode, project, workspace, tags",
        ),
        ([*OFFLINE, "+logger.swanlab.run=x"], "logger.swanlab.run: no such setting; there are mode"),
        (
            ["+logger.mode=offline"],
            "logger.mode: no such setting; did you mean logger.swanlab.mode or logger.wandb.mode? (with logger=swan",
        ),
        ([*OFFLINE, "+logger.mode=local"], "logger.mode: no such setting; did you mean logger.swanlab.mode?"),
        ([*OFFLINE, "+logger.colour=red"], "logger.colour: no such setting; settings are below a logger's name"),
        (["+logger.swanlab.mode=offline"], "logger.swanlab: its class (_target_) is missing; choose it, as in logger="),
        ([*OFFLINE, "logger.swanlab.tags=abc"], "logger.swanlab.tags=abc: expected a list"),
        ([*OFFLINE, "logger.swanlab.project='my project'"], "logger.swanlab.project=my project: String should match"),
        ([*OFFLINE, "logger.swanlab.project=null"], "logger.swanlab.project=null: expected a name"),
        ([*OFFLINE, "logger.swanlab.workspace=a/b"], "logger.swanlab.workspace=a/b: String should match"),
        (
            ["+logger.x._target_=slaterl.training.swanlab.Nothing"],
            "logger.x._target_=slaterl.training.swanlab.Nothing: no",
        ),
        (["+logger.x._target_=slaterl.nothing.Logger"], "logger.x._target_=slaterl.nothing.Logger: no such class"),
        (
            ["+logger.x._target_=nothing_here.Logger"],
            "logger=x needs the package nothing_here: pip install noth",
        ),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        check_loggers(compose_config(*overrides))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("name", ["swanlab", "tensorboard", "wandb", "mlflow"])
def test_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, f"slaterl.training.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as raised:
        check_loggers(compose_config(f"logger=[csv,{name}]"))
    assert str(raised.value) == f"logger={name} needs the package {name}: pip install 'slaterl[{name}]'"


def test_cloud_without_login_ends_at_once() -> None:
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"swanlab login.*SWANLAB_API_KEY.*logger\.swanlab\.mode=offline"):
        check_loggers(compose_config("logger=swanlab"))
    assert time.perf_counter() - start < 3


def test_cloud_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_API_KEY", "a" * 21)
    monkeypatch.setattr(urllib3.Retry, "sleep", lambda *_: None)
    with pytest.raises(UserError, match=r"did not answer or refused.*logger\.swanlab\.mode=offline"):
        check_loggers(compose_config("logger=swanlab"))


def test_local_names_the_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"swanboard: pip install 'swanlab\[dashboard\]'"):
        check_loggers(compose_config("logger=swanlab", "logger.swanlab.mode=local"))


def test_offline_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = compose_config(*OFFLINE, "logger.swanlab.project=slates", "logger.swanlab.tags=[night,2]", "agent.gamma=0.7")
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
    run = train(compose_config("logger=swanlab", "logger.swanlab.mode=disabled"), a_run(tmp_path / "outputs"))
    assert {file.name for file in run.path.iterdir()} == {"manifest.json", "metrics.csv", ".lock"}


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (ValueError("loss/critic is not finite"), "RUN_STATE_CRASHED", "ValueError: loss/critic is not finite"),
        (Interrupted(15), "RUN_STATE_ABORTED", "Interrupted: signal 15"),
    ],
)
def test_reason_of_the_end_is_recorded(tmp_path: Path, error: BaseException, state: str, reason: str) -> None:
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


def test_resumed_run_keeps_its_id(tmp_path: Path) -> None:
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


def test_run_whose_folder_was_removed_gets_another_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for number in (1, 2):
        monkeypatch.setattr("slaterl.runs.run._now", lambda day=number: f"2025-01-0{day}T00:00:00+0000")
        (found,) = logged(train(compose_config(*OFFLINE), a_run(tmp_path / str(number))))
        ids.append(found.start.id)
    assert ids[0] != ids[1]
    assert all(len(name) == 21 and name.isalnum() and name.islower() for name in ids)


def test_failed_start_is_one_sentence(tmp_path: Path) -> None:
    cfg, run = compose_config(*OFFLINE), a_run(tmp_path)
    run.path.mkdir(parents=True)
    (run.path / "swanlog").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"logger=swanlab cannot start .*logger\.swanlab\.mode=offline needs neither"):
        train(cfg, run)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["logger=swanlab", "logger.mode=offline"], "logger.mode: no such setting; did you mean logger.swanlab.mode?"),
        (
            ["logger=[csv,wandb]", "+logger.mode=offline"],
            "logger.mode: no such setting; did you mean logger.wandb.m",
        ),
        (
            ["-m", "logger.workspace=a"],
            "logger.workspace: no such setting; did you mean logger.swanlab.workspace",
        ),
    ],
)
def test_old_settings_on_the_command_line_get_a_hint(arguments: list[str], meant: str) -> None:
    with pytest.raises(UserError) as raised:
        check_overrides(arguments)
    assert str(raised.value).startswith(meant)


def test_command_lines_without_old_settings_pass() -> None:
    check_overrides(["-m", "logger=[csv,swanlab]", "logger.swanlab.mode=offline", "+logger.mine={_target_:a.B}"])


class Toy(Logger):
    """A logger of a stranger: keeps in `made` what it was given."""

    made: ClassVar[list[Toy]] = []
    experiment = None
    version = None

    def __init__(
        self, save_dir: str, name: str, version: str | None = None, colour: str = "red", fails: int = 0
    ) -> None:
        super().__init__()
        self.given = {"save_dir": save_dir, "name": name, "version": version, "colour": colour}
        self.fails, self.rows, self.ended = fails, {}, ""
        self.made.append(self)

    @property
    def name(self) -> str:
        return "toy"

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.params = params

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step == self.fails:
            raise ConnectionError("the server is gone")
        self.rows[step] = metrics

    def finalize(self, status: str) -> None:
        self.ended = status


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The overrides that choose Toy by a YAML of three lines, in a folder of the user."""
    monkeypatch.setattr(Toy, "made", [])
    (tmp_path / "mine" / "logger").mkdir(parents=True)
    lines = ("toy:", "  _target_: tests.training.test_loggers.Toy", "  colour: blue")
    (tmp_path / "mine" / "logger" / "toy.yaml").write_text("\n".join(lines))
    return f"hydra.searchpath=[file://{tmp_path / 'mine'}]", "logger=[csv,toy]"


def test_any_lightning_logger_by_three_lines(tmp_path: Path, toy: tuple[str, ...]) -> None:
    cfg = compose_config(*toy, "agent.gamma=0.7")
    check_loggers(cfg)
    run = train(cfg, a_run(tmp_path))
    (found,) = Toy.made
    version = found.given.pop("version")
    assert found.given == {"save_dir": str(run.path), "name": run.path.name, "colour": "blue"}
    assert found.params["agent"]["gamma"] == 0.7 and found.params["run"]["digest"] == run.digest
    assert [row["loss/critic"] for row in found.rows.values()] == [0.5, 1.0, 1.5] and list(found.rows) == [1, 2, 3]
    assert found.ended == "success"
    with pytest.raises(Interrupted):
        train(cfg, run, start=3, error=Interrupted(15))
    again = Toy.made[1]
    assert again.given["version"] == version and again.ended == "failed"


def test_settings_replace_what_is_supplied(tmp_path: Path, toy: tuple[str, ...]) -> None:
    train(compose_config(*toy, "+logger.toy.name=mine"), a_run(tmp_path))
    assert Toy.made[0].given["name"] == "mine"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+logger.toy.color=red", "logger.toy.color: no such setting; did you mean colour?"),
        ("+logger.toy.size=1", "logger.toy.size: no such setting; there are save_dir, name, version, colour, fails"),
    ],
)
def test_settings_come_from_the_signature(toy: tuple[str, ...], override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_loggers(compose_config(*toy, override))


def test_setting_without_a_value_is_needed() -> None:
    node = {"_target_": "lightning.pytorch.loggers.csv_logs.ExperimentWriter"}  # needs log_dir
    with pytest.raises(UserError, match=r"logger\.x\.log_dir: a value is needed; give \+logger\.x\.log_dir="):
        check_loggers(OmegaConf.create({"logger": {"x": node}}))


def test_failing_logger_stops_neither_the_run_nor_the_others(
    tmp_path: Path, toy: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = compose_config(toy[0], "logger=[csv,toy,swanlab]", "logger.swanlab.mode=offline", "+logger.toy.fails=2")
    run = train(cfg, a_run(tmp_path))
    assert list(Toy.made[0].rows) == [1]
    assert set(logged(run)[0].points["loss/critic"]) == {1, 2, 3}
    assert len((run.path / "metrics.csv").read_text().splitlines()) == 4
    assert capsys.readouterr().err.count("logger=toy: ConnectionError: the server is gone; from step 2 on") == 1


def test_logger_that_refuses_its_arguments_is_named(tmp_path: Path, toy: tuple[str, ...]) -> None:
    cfg = compose_config(*toy)
    cfg.logger.toy["_target_"] = "tests.training.test_loggers.refuse_all"
    with pytest.raises(UserError, match=r"logger=toy cannot start \(ValueError: blue is no colour\)"):
        train(cfg, a_run(tmp_path))


def refuse_all(colour: str) -> NoReturn:
    raise ValueError(f"{colour} is no colour")
