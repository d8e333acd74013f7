"""MLflow, through Lightning's logger: a database in the run's folder, or a tracking server."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lightning.pytorch import loggers
from mlflow import MlflowClient
from mlflow.entities import RunStatus

from slaterl.errors import UserError
from slaterl.runs.files import in_short
from slaterl.training.run_logger import Ending, Labels, Name, RunDetails, RunLogger

_SERVER = os.environ.get("MLFLOW_TRACKING_URI") or None  # read once: MLflow sets it to the address of the last run
_ID = "slaterl_id"  # the tag that identifies a resumed run
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it reports each table that it creates
_STATES = {"finished": RunStatus.FINISHED, "aborted": RunStatus.KILLED, "crashed": RunStatus.FAILED}


class MLFlowLogger(RunLogger, loggers.MLFlowLogger):
    """Log to MLflow. A resumed run continues the same MLflow run; the run's labels are tags.

    Args:
        run: its folder gets `mlflow/mlflow.db` unless there is a server.
        experiment_name: MLflow's experiment, which holds many runs.
        tracking_uri: address of a server; None uses MLFLOW_TRACKING_URI if set, else the run's folder.
        tags: in addition to the run's labels.
    """

    def __init__(
        self,
        *,
        run: RunDetails,
        experiment_name: Name = "slaterl",
        tracking_uri: Name | None = None,
        tags: Labels = MappingProxyType({}),  # type: ignore[assignment]
    ) -> None:
        uri, artifacts = _server(tracking_uri), None
        if uri is None:
            folder = run.folder / "mlflow"
            folder.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(experiment_name)
        number = experiment.experiment_id if experiment else client.create_experiment(experiment_name, artifacts)
        found = client.search_runs([number], f"tags.{_ID} = '{run.id}'", max_results=1)
        self.resumed = bool(found)
        if found:
            client.update_run(found[0].info.run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        group = {"group": run.group} if run.group else {}
        super().__init__(
            experiment_name=experiment_name,
            run_name=run.name,
            tracking_uri=uri,
            tags={**{name: str(value) for name, value in {**run.labels, **group, **tags}.items()}, _ID: run.id},
            run_id=found[0].info.run_id if found else None,
        )

    @classmethod
    def check(cls, path: str, settings: Mapping[str, Any]) -> None:
        server = _server(settings.get("tracking_uri"))
        if server:
            try:
                MlflowClient(server).search_experiments(max_results=1)
            except Exception as error:
                raise UserError(f"logger=mlflow: {server} does not answer ({in_short(error)})") from error
            return
        missing = [name for name in ("sqlalchemy", "alembic") if importlib.util.find_spec(name) is None]
        if missing:
            todo = f"pip install 'slaterl[mlflow]', or give {path}.tracking_uri=<address of a server>"
            raise UserError(f"logger=mlflow needs the package {missing[0]} to write to a file: {todo}")

    def log_hyperparams(self, params: Any) -> None:
        if not self.resumed:  # MLflow refuses another value of a parameter, such as threads, which may change
            super().log_hyperparams(params)

    def end(self, state: Ending, reason: str | None) -> None:
        if reason:
            self.experiment.set_tag(self.run_id, "ended_by", reason)
        self.experiment.set_terminated(self.run_id, RunStatus.to_string(_STATES[state]))


def _server(tracking_uri: str | None) -> str | None:
    return tracking_uri or _SERVER
