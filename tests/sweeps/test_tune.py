"""hydra/sweeper=tune: studies that are resumed and continued, trials that fail or are pruned, and their page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("optuna")

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.slaterl_sweepers.tune import Tune
from slaterl.console import tell
from slaterl.data.formats import checks
from slaterl.errors import Pruned, UserError
from slaterl.sweeps.records import jobs
from slaterl.sweeps.study import Study, reporting, space_of
from tests.helpers import compose_config

SPACE = ("agent.gamma=interval(0.1,0.9)", "agent.q_lr=tag(log,interval(1e-4,1e-2))")
Answer = Callable[[int, dict[str, float]], float | Exception]


def parsed(*overrides: str) -> tuple[list[str], dict[str, Any]]:
    return space_of(OverridesParser.create().parse_overrides(list(overrides)))


class Launcher:
    """Answers each job with a number or an error, as `answer` says, and writes down what it got."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.launches = answer, []  # type: ignore[var-annotated]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.launches.append((initial_job_idx, [list(one) for one in job_overrides]))
        returns = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            values = {key: float(value) for key, value in (one.split("=") for one in overrides) if key != "seed"}
            found = self.answer(number, values)
            failed = isinstance(found, Exception)
            returns.append(JobReturn(status=JobStatus.FAILED if failed else JobStatus.COMPLETED, _return_value=found))
        return returns


def tune(folder: Path, answer: Answer, *arguments: str, **settings: Any) -> Launcher:
    sweeper = Tune(**{"trials": 6, "batch": 2, "startup": 3, "prune": True, "seed": 0, "params": {}, **settings})
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})

    def compose(config: DictConfig, overrides: list[str]) -> DictConfig:
        return compose_config("agent=td3", *overrides)

    sweeper.hydra_context = SimpleNamespace(config_loader=SimpleNamespace(load_sweep_config=compose))  # type: ignore[assignment]
    sweeper.launcher = Launcher(answer)  # type: ignore[assignment]
    sweeper.sweep([*(arguments or (*SPACE, "seed=5"))])
    return sweeper.launcher  # type: ignore[return-value]


def states(folder: Path) -> list[str]:
    study = optuna.load_study(
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
        ),
        study_name="study",
    )
    return [trial.state.name for trial in study.trials]


def near(number: int, values: dict[str, float]) -> float:
    """Best at gamma 0.7, whatever the learning rate."""
    return 100 - 100 * abs(values["agent.gamma"] - 0.7)


def test_space() -> None:
    fixed, space = parsed(
        "agent.gamma=interval(0,1)", "a=tag(log,interval(1e-4,1e-2))", "b=int(interval(1,8))", "c=choice([1,2],[3])",
        "d=x,y", "e=range(1,4)", "seed=3", "agent.gamma=0.5", "seed=4",
    )  # fmt: skip
    assert fixed == ["agent.gamma=0.5", "seed=4"], "the last one of a key counts"
    assert space == {
        "a": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "b": optuna.distributions.IntDistribution(1, 8),
        "c": optuna.distributions.CategoricalDistribution(["[1,2]", "[3]"]),
        "d": optuna.distributions.CategoricalDistribution(["x", "y"]),
        "e": optuna.distributions.CategoricalDistribution(["1", "2", "3"]),
    }
    with pytest.raises(UserError, match=r"hydra.sweeper.params: nothing to tune; give a setting several values"):
        parsed("seed=3")
    with pytest.raises(UserError, match=r"a=interval\(2,1\): cannot be tuned"):
        parsed("a=interval(2,1)")


def test_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = tune(tmp_path / "study", near, trials=24, batch=4, startup=8)
    assert [first for first, _ in launcher.launches] == [0, 4, 8, 12, 16, 20]
    assert all(one[0] == "seed=5" for _, batch in launcher.launches for one in batch)
    gammas = [float(one[1].split("=")[1]) for _, batch in launcher.launches for one in batch]
    assert all(one[1].startswith("agent.gamma=") for _, batch in launcher.launches for one in batch)
    away = [abs(gamma - 0.7) for gamma in gammas]
    assert sum(away[16:]) / 8 < sum(away[:8]) / 8, "proposals are nearer to the optimum than random trials"
    page = (tmp_path / "study" / "study.md").read_text()
    best = gammas[away.index(min(away))]
    assert f"agent.gamma={best} " in page and "24 trials: 24 finished." in page
    assert page.index("`agent.gamma` |") < page.index("`agent.q_lr` |"), "the more important one comes first"
    assert (tmp_path / "study" / "study.png").read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'study'}\n" and "best val/return" in err


def test_failed_trials_do_not_end_the_study(tmp_path: Path) -> None:
    def broken(number: int, values: dict[str, float]) -> float | Exception:
        return RuntimeError("out of memory") if number in (1, 2) else near(number, values)

    tune(tmp_path, broken)
    assert states(tmp_path) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert "6 trials: 4 finished, 2 failed." in (tmp_path / "study.md").read_text()


def test_all_failed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        tune(tmp_path, lambda number, values: RuntimeError("no"), trials=2)
    assert stopped.value.code == 1 and states(tmp_path) == ["FAIL", "FAIL"]
    assert "No trial has finished." in (tmp_path / "study.md").read_text()


def test_resumed_and_continued(tmp_path: Path) -> None:
    """The command is killed in the second batch. Its trials run again with the same settings, and then new ones."""
    seen: dict[int, dict[str, float]] = {}

    def killed(number: int, values: dict[str, float]) -> float:
        seen[number] = values
        if number == 3:
            raise KeyboardInterrupt
        return near(number, values)

    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, killed)
    assert states(tmp_path) == ["COMPLETE", "COMPLETE", "RUNNING", "RUNNING"]

    def again(number: int, values: dict[str, float]) -> float:
        assert seen.setdefault(number, values) == values
        return near(number, values)

    assert [first for first, _ in tune(tmp_path, again).launches] == [2, 4]
    assert states(tmp_path) == ["COMPLETE"] * 6
    assert tune(tmp_path, near).launches == [], "it has its trials"
    assert [first for first, _ in tune(tmp_path, again, trials=9).launches] == [6, 8]
    assert len({tuple(values.values()) for values in seen.values()}) == 9, "no trial is proposed twice"


def test_trials_with_gaps_are_launched_apart(tmp_path: Path) -> None:
    study = Study(tmp_path, *parsed(*SPACE, "seed=5"), seed=0, startup=2)
    with study.running():
        assert study.ask(4) == [0, 1, 2, 3]
        study.tell(1, 3.0)
    assert [first for first, _ in tune(tmp_path, near, trials=4).launches] == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        ([*SPACE, "seed=6"], {}, "its trials have other settings (seed=5 seed=6); choose another folder"),
        (["seed=5"], {}, "hydra.sweeper.params: nothing to tune"),
        ([*SPACE, "seed=5"], {"trials": 0}, "hydra.sweeper.trials=0: expected a whole number from 1 on"),
        ([*SPACE, "stage=pretrain"], {}, "stage=pretrain: only stage=online and offline have a validation to tune by"),
        (["agent.gamma=interval(2,3)", "seed=5"], {}, "agent.gamma=2.0: expected a number from 0 to 1"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], settings: dict[str, Any], said: str
) -> None:
    tune(tmp_path, near, trials=2)
    with pytest.raises(SystemExit) as stopped:
        tune(tmp_path, near, *arguments, **settings)
    assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert states(tmp_path) == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("other", ["seed=1,3", "seed=interval(1,2)"])
def test_other_choices_need_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str) -> None:
    settings = ("agent.gamma=interval(0.1,0.9)",)
    tune(tmp_path, near, *settings, "seed=1,2", trials=2)
    with pytest.raises(SystemExit) as stopped:
        tune(tmp_path, near, *settings, other, trials=4)
    assert stopped.value.code == 2 and "its trials chose seed in another way" in capsys.readouterr().err
    assert states(tmp_path) == ["COMPLETE", "COMPLETE"], "no trial was begun"
    tune(tmp_path, near, "agent.gamma=interval(0.2,0.8)", "seed=1,2", trials=3)
    assert states(tmp_path) == ["COMPLETE"] * 3, "an interval may change"


def test_a_proposal_that_was_cut_short_is_not_run(tmp_path: Path) -> None:
    study = Study(tmp_path, *parsed(*SPACE, "seed=5"), seed=0, startup=2)
    with study.running():
        study.optuna.ask({"agent.gamma": study.space["agent.gamma"]})
    launcher = tune(tmp_path, near, trials=3)
    assert [first for first, _ in launcher.launches] == [1]
    assert states(tmp_path) == ["FAIL", "COMPLETE", "COMPLETE"]


def test_choices_are_drawn_in_their_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        tune(tmp_path, near, "agent.gamma=0.7,0.1,0.4", trials=6)
    assert "categorical units" not in caplog.text, "matplotlib did not have to guess"


def test_two_commands(tmp_path: Path) -> None:
    study = Study(tmp_path, *parsed(*SPACE), seed=0, startup=2)
    other = Study(tmp_path, *parsed(*SPACE), seed=0, startup=2)
    with study.running(), pytest.raises(UserError, match="another command runs this study"), other.running():
        pass


def test_optuna_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(checks, "import_module", missing)
    with pytest.raises(UserError, match=r"hydra/sweeper=tune: needs the package optuna: pip install 'slaterl\[tune\]'"):
        parsed(*SPACE)


def validated(step: int, score: float, name: str = "val/return") -> None:
    tell(done=step, score=score, scored=name)


def test_pruning(tmp_path: Path) -> None:
    study = Study(tmp_path, *parsed(*SPACE), seed=0, startup=3)
    with study.running():
        study.ask(6)
        for number, value in enumerate((10.0, 20.0, 30.0)):
            with reporting(tmp_path, number, prune=True, startup=3):
                validated(100, value)  # below the median, but there are too few trials to say so
                validated(200, 2 * value)
            study.tell(number, 2 * value)
        with reporting(tmp_path, 3, prune=True, startup=3):
            validated(100, 0.1, "val/loss")  # of the ranker
            validated(100, 25.0)
            with pytest.raises(Pruned, match="pruned: its best validation up to step 200 is below the median"):
                validated(200, 39.0)
        with reporting(tmp_path, 4, prune=True, startup=3):
            validated(100, 25.0)
            validated(200, 41.0)
        with reporting(tmp_path, 4, prune=True, startup=3):  # resumed from an earlier step
            validated(200, 0.0)
        with reporting(tmp_path, 5, prune=False, startup=3):
            validated(100, 1.0)
    values = [trial.intermediate_values for trial in study.trials]
    assert values[3] == {100: 25.0, 200: 39.0} and values[4] == {100: 25.0, 200: 41.0} and values[5] == {100: 1.0}


def test_a_sweep_that_is_killed(tmp_path: Path) -> None:
    """As a user meets it: real runs, SIGKILL during one after the first, the same command again, and pruned trials."""
    sweep = tmp_path / "multirun"
    command = [sys.executable, "-m", "slaterl.run", "experiment=tune", "scale=smoke", "device=cpu", "agent=dqn"]
    command += ["hydra.sweeper.params=null", "agent.q_lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.batch=1"]
    command += ["hydra.sweeper.trials=5", "hydra.sweeper.startup=3", "max_steps=100", f"hydra.sweep.dir={sweep}"]
    where: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "SLATERL_HOME": str(tmp_path / "home")}}
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **where)
    deadline = time.monotonic() + 300
    saved: list[Path] = []
    while len(jobs(sweep)) < 2 or not saved:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
        runs = (tmp_path / "home").glob("online/*/*/last.ckpt")
        saved = [file for file in runs if not (file.parent / "result.json").is_file()]
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = [job.state for job in jobs(sweep)]
    assert before[-1] == "killed" and set(before[:-1]) == {"finished"}

    done = subprocess.run(command, capture_output=True, text=True, **where)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == str(sweep), done.stderr
    assert f"the study has {len(before)} trials" in done.stderr and "resuming from step" in done.stderr
    ended = [job.state for job in jobs(sweep)]
    assert len(ended) == 5 and set(ended) <= {"finished", "pruned"}
    assert "5 trials: " in (sweep / "study.md").read_text()
    for job, state in zip(jobs(sweep), states(sweep), strict=True):
        manifest = json.loads((Path(job.record["run"]) / "manifest.json").read_text())
        assert state == {"finished": "COMPLETE", "pruned": "PRUNED"}[job.state]
        assert manifest["status"] == {"finished": "finished", "pruned": "interrupted"}[job.state]
        assert ("pruned: its best validation up to step" in manifest.get("reason", "")) == (job.state == "pruned")
    assert "pruned" in ended, "the seed proposes trials of which some are below the median"
