"""The MLflow logger, with a database in the run's folder; needs the extra mlflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slaterl.errors import Interrupted, UserError
from slaterl.runs.run import Run
from slaterl.training.logger_settings import check_loggers
from tests.helpers import compose_config
from tests.training.small_run import a_run, train

mlflow = pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("slaterl.training.mlflow._SERVER", None)
    for folder in ("home", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.chdir(tmp_path / "work")


def logged(run: Run) -> tuple[Any, Any]:
    """MLflow's client and the only run in the database."""
    client = mlflow.MlflowClient(f"sqlite:///{run.path / 'mlflow' / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("slaterl").experiment_id])
    return client, found


def test_local_database_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = compose_config("logger=mlflow", "+logger.mlflow.tags.team=search", "agent.gamma=0.7")
    check_loggers(cfg)
    run = train(cfg, a_run(tmp_path / "outputs"))
    client, found = logged(run)
    assert (found.info.run_name, found.info.status) == (run.path.name, "FINISHED")
    assert found.data.params["agent/gamma"] == "0.7" and found.data.params["run/digest"] == run.digest
    assert {"team": "search", "agent": "sac", "seed": "1"}.items() <= found.data.tags.items()
    points = client.get_metric_history(found.info.run_id, "loss/critic")
    assert {point.step: point.value for point in points} == {1: 0.5, 2: 1.0, 3: 1.5}
    assert capsys.readouterr().out == ""
    assert {path.name for path in run.path.iterdir()} == {"manifest.json", "metrics.csv", ".lock", "mlflow"}
    assert not any((tmp_path / "home").iterdir())
    assert not any((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("loss/critic is not finite"), "FAILED", "ValueError: loss/critic is not finite"),
        (Interrupted(15), "KILLED", "Interrupted: signal 15"),
    ],
)
def test_reason_of_the_end_is_recorded(tmp_path: Path, error: BaseException, status: str, reason: str) -> None:
    run = a_run(tmp_path)
    with pytest.raises(type(error)):
        train(compose_config("logger=mlflow"), run, error=error)
    found = logged(run)[1]
    assert (found.info.status, found.data.tags["ended_by"]) == (status, reason)


def test_resumed_run_continues_the_same_run(tmp_path: Path) -> None:
    """Also with another value of a setting that may change, which MLflow itself refuses."""
    run = a_run(tmp_path)
    with pytest.raises(Interrupted):
        train(compose_config("logger=mlflow"), run, updates=3, error=Interrupted(15))
    train(compose_config("logger=mlflow", "threads=1"), run, updates=2, start=3)
    client, found = logged(run)
    assert found.info.status == "FINISHED"
    points = client.get_metric_history(found.info.run_id, "start")
    assert {point.step: point.value for point in points} == {1: 0, 2: 0, 3: 0, 4: 3, 5: 3}


def test_two_trainings_in_one_process_do_not_mix(tmp_path: Path) -> None:
    cfg = compose_config("logger=mlflow")
    first, second = train(cfg, a_run(tmp_path, seed=1)), train(cfg, a_run(tmp_path, seed=2), updates=5)
    for run, rows in ((first, 3), (second, 5)):
        client, found = logged(run)
        assert found.info.run_name == run.path.name
        assert len(client.get_metric_history(found.info.run_id, "start")) == rows


def test_server_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slaterl.training.mlflow._SERVER", f"sqlite:///{tmp_path / 'shared.db'}")
    run = train(compose_config("logger=mlflow"), a_run(tmp_path))
    assert not (run.path / "mlflow").exists() and (tmp_path / "shared.db").is_file()


def test_server_that_does_not_answer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    cfg = compose_config("logger=mlflow", "logger.mlflow.tracking_uri='http://127.0.0.1:9'")
    with pytest.raises(UserError, match=r"logger=mlflow: http://127\.0\.0\.1:9 does not answer"):
        check_loggers(cfg)
    with pytest.raises(UserError, match="logger=mlflow cannot start"):
        train(cfg, a_run(tmp_path))


def test_file_needs_a_database_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package sqlalchemy to write to a file: pip install 'slaterl\[mlfl"):
        check_loggers(compose_config("logger=mlflow"))


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"logger\.mlflow\.tags=abc: expected names with values"):
        check_loggers(compose_config("logger=mlflow", "logger.mlflow.tags=abc"))
    with pytest.raises(UserError, match=r"logger\.mlflow\.tracking_url: no such setting; did you mean tracking_uri\?"):
        check_loggers(compose_config("logger=mlflow", "+logger.mlflow.tracking_url=a"))
