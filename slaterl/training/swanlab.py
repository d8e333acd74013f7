"""SwanLab, through its own Lightning integration.

It writes only to the run's folder, because parallel runs that share a folder lose data in its local mode.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import swanlab
from pydantic import ValidationError
from swanlab import Settings
from swanlab.exceptions import AuthenticationError
from swanlab.integration import pytorch_lightning

from slaterl.errors import UserError
from slaterl.training.run_logger import Ending, Name, RunDetails, RunLogger, Tags


class SwanLabLogger(RunLogger, pytorch_lightning.SwanLabLogger):
    """Log to SwanLab.

    Args:
        run: its folder gets a folder `swanlog`.
        mode: cloud needs a login, local needs the package swanboard; upload offline runs later with `swanlab sync`.
        workspace: name of an organisation; None uses the user's own.
        tags: in addition to the run's labels.
    """

    ADVICE: ClassVar[str] = "logger.swanlab.mode=offline needs neither network nor account"

    def __init__(
        self,
        *,
        run: RunDetails,
        mode: Literal["cloud", "local", "offline", "disabled"] = "cloud",
        project: Name = "slaterl",
        workspace: Name | None = None,
        tags: Tags = (),  # type: ignore[assignment]
    ) -> None:
        super().__init__(
            settings=_settings("logger.swanlab", mode, project, workspace, tags),
            tags=run.tags(tags),
            experiment_name=run.name,
            save_dir=run.folder,
            log_dir=str(run.folder / "swanlog"),
            group=run.group,
            job_type=run.labels["stage"],
            id=run.id,
            resume="allow",
        )

    @classmethod
    def check(cls, path: str, settings: Mapping[str, Any]) -> None:
        mode = settings.get("mode", "cloud")
        values = {"project": "slaterl", "workspace": None, "tags": [], **settings}
        _settings(path, mode, values["project"], values["workspace"], values["tags"])
        if mode == "cloud":
            _log_in(path)
        if mode == "local" and importlib.util.find_spec("swanboard") is None:
            todo = f"pip install 'swanlab[dashboard]', or use {path}.mode=offline"
            raise UserError(f"{path}.mode=local needs the package swanboard: {todo}")

    def resume(self, step: int, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Log the rows again. Offline and local modes start a new folder; the cloud ignores steps that it has."""
        for at, row in rows:
            self.log_metrics(row, at)

    def end(self, state: Ending, reason: str | None) -> None:
        if swanlab.has_run():  # otherwise the next training of this process would log into this run
            swanlab.finish(state="success" if state == "finished" else state, error=reason)


def _settings(path: str, mode: str, project: str, workspace: str | None, tags: Sequence[Any]) -> Settings:
    """Return SwanLab's settings: no questions, no copy of the terminal, no probes for facts in the manifest.

    Raises:
        UserError: SwanLab refuses a value.
    """
    probes = ("hardware", "runtime", "requirements", "conda", "git", "swanlab", "monitor")
    try:
        return Settings(
            mode=mode,
            interactive=False,
            project=Settings.Project(name=project, workspace=workspace),
            experiment=Settings.Experiment(tags=[str(tag) for tag in tags]),
            terminal=Settings.Terminal(proxy_type="none"),
            probe=Settings.Probe(**dict.fromkeys(probes, False)),
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]).replace("name", "project")
        values = {"project": project, "workspace": workspace, "tags": tags}
        where = f"{path}.{key}={values[key]}" if key in values else f"SwanLab's setting {key}"
        raise UserError(f"{where}: {first['msg']}") from error


def _log_in(path: str) -> None:
    """Raise UserError if this machine has no login to SwanLab, or the server does not accept it."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            swanlab.login()
        except AuthenticationError as error:
            instead = f"or use {path}.mode=offline and upload later"
            if Settings().api_key is None:
                todo = f"run `swanlab login`, set SWANLAB_API_KEY, {instead}"
                raise UserError(f"{path}.mode=cloud: no login to SwanLab on this machine; {todo}") from error
            todo = f"check the network and `swanlab login --relogin`, {instead}"
            raise UserError(f"{path}.mode=cloud: SwanLab did not answer or refused the login; {todo}") from error
