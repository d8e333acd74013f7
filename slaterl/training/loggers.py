"""Loggers beside metrics.csv, which every run writes whatever is chosen.

`logger=swanlab` goes through SwanLab's own Lightning integration. SwanLab is imported only where it is chosen, and all
it writes lies in the run's folder: runs side by side that share one folder lose data in its local mode.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from slaterl.errors import Interrupted, UserError
from slaterl.runs.run import Run
from slaterl.training import metrics

if TYPE_CHECKING:  # Lightning takes seconds to import, and checking a configuration does not need it
    from lightning.pytorch.loggers import Logger
    from swanlab import Settings

_MODES = ("cloud", "local", "offline", "disabled")
_KEYS = ("mode", "project", "workspace", "tags")


def check_loggers(cfg: DictConfig) -> None:
    """Refuse, before anything starts, what would stop the loggers once there is something to log.

    Raises:
        UserError: a setting below `logger` that nothing reads or SwanLab refuses, a mode that is none, mode=cloud
            without a login or with one that the server does not accept, mode=local without the package it needs.
    """
    settings = _settings(cfg)
    if not settings:
        return
    for key in settings:
        if key not in _KEYS:
            raise UserError(f"logger.{key}: no such setting; there are {', '.join(_KEYS)}")
    if len(settings) < len(_KEYS):
        raise UserError(f"logger.{next(iter(settings))}: only SwanLab has settings; add logger=swanlab")
    mode, tags = settings["mode"], settings["tags"]
    if mode not in _MODES:
        raise UserError(f"logger.mode={mode}: expected {', '.join(_MODES[:-1])} or {_MODES[-1]}")
    if not isinstance(tags, list):
        raise UserError(f"logger.tags={tags}: expected a list, as in logger.tags=[{tags}]")
    if settings["project"] is None:
        raise UserError("logger.project=null: expected a name")
    _for_swanlab(settings)
    if mode == "cloud":
        _log_in()
    if mode == "local" and importlib.util.find_spec("swanboard") is None:
        todo = "pip install 'swanlab[dashboard]', or use logger.mode=offline"
        raise UserError(f"logger.mode=local needs the package swanboard; {todo}")


def make_loggers(cfg: DictConfig, run: Run) -> list[Logger]:
    """The chosen loggers of a run, for `fit`. Nothing is opened or written before `logging_to`."""
    settings = _settings(cfg)
    if not settings:
        return []
    from swanlab.integration.pytorch_lightning import SwanLabLogger

    class RunLogger(SwanLabLogger):
        def finalize(self, status: str | None = None) -> None:
            """Lightning does not say why it ends; `logging_to` knows."""

    seed = run.spec.get("seed", cfg.seed)
    labels: dict[str, Any] = {"stage": run.stage, "env": run.env, "ranker": cfg.ranker.name, "seed": seed}
    if "agent" in run.spec:  # a ranker is pretrained for all agents
        labels["agent"] = cfg.agent.name
    if HydraConfig.initialized():
        labels["params"] = HydraConfig.get().runtime.choices.params
    tags = [*settings["tags"], *(f"seed{value}" if name == "seed" else value for name, value in labels.items())]
    return [
        RunLogger(
            settings=_for_swanlab(settings),
            tags=list(dict.fromkeys(str(tag) for tag in tags)),
            experiment_name=run.path.name,
            config={**OmegaConf.to_container(cfg, resolve=True), "run": {**labels, "digest": run.digest}},
            save_dir=run.path,
            log_dir=str(run.path / "swanlog"),
            group=_sweep_name(),
            job_type=run.stage,
            id=_swanlab_id(run),
            resume="allow",
        )
    ]


@contextlib.contextmanager
def logging_to(loggers: Sequence[Logger], metrics_file: Path, step: int) -> Iterator[None]:
    """Open the loggers for the block, and end them with what ended it: finished, aborted or crashed, and why.

    Args:
        metrics_file, step: a training that goes on from `step` first repeats what metrics.csv holds up to there.
            SwanLab drops the steps it has; offline and local, where it starts a new folder, that folder is complete.

    Raises:
        UserError: SwanLab cannot start.
    """
    if not loggers:
        yield
        return
    import swanlab

    state, reason = "success", None
    with _on_stderr():
        try:
            _open(loggers)
            _repeat(loggers, metrics_file, step)
            yield
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt | SystemExit)
            state, reason = "aborted" if stopped else "crashed", f"{type(error).__name__}: {error}"
            raise
        finally:
            if swanlab.has_run():  # the next training of this process would log into a run that is left open
                swanlab.finish(state=state, error=reason)


def _open(loggers: Sequence[Logger]) -> None:
    from swanlab.exceptions import AuthenticationError

    try:
        for logger in loggers:
            _ = logger.experiment  # it is this access that starts SwanLab's run
    except (OSError, RuntimeError, ValueError, ImportError, AuthenticationError) as error:
        todo = "logger.mode=offline needs neither network nor account"
        raise UserError(f"logger=swanlab: SwanLab cannot start ({error}); {todo}") from error


def _repeat(loggers: Sequence[Logger], metrics_file: Path, step: int) -> None:
    """Log the rows of metrics.csv up to `step`."""
    rows = metrics.read(metrics_file) if step > 0 and metrics_file.is_file() else []
    for row in rows:
        at = int(row.pop("step"))
        if at <= step:
            for logger in loggers:
                logger.log_metrics({name: float(value) for name, value in row.items() if value}, at)


def _on_stderr() -> contextlib.redirect_stdout:
    """SwanLab prints to stdout, from threads of its own, too; there the run's folder is to be found."""
    return contextlib.redirect_stdout(sys.stderr)


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """What stands below `logger`: nothing with csv alone."""
    return OmegaConf.to_container(cfg.get("logger") or OmegaConf.create({}), resolve=True)  # type: ignore[return-value]


def _sweep_name() -> str | None:
    """One name for all runs of a sweep, from the command that launched it: launched again, it has the same."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    hydra = OmegaConf.load(Path(HydraConfig.get().sweep.dir) / "multirun.yaml").hydra
    command = sorted(entry for entry in hydra.overrides.task if not entry.startswith("logger"))
    digest = hashlib.sha256("\n".join(command).encode()).hexdigest()[:6]
    return f"{hydra.runtime.choices.experiment or 'sweep'}-{digest}"


def _swanlab_id(run: Run) -> str:
    """The same for every start of one run, another for a run made anew: SwanLab keeps the old points of an id.

    Older servers of SwanLab take no id but one of 21 lower-case letters and digits.
    """
    born = hashlib.sha256(run.manifest.get("started", "").encode()).hexdigest()
    return run.digest + born[: 21 - len(run.digest)]


def _for_swanlab(settings: dict[str, Any]) -> Settings:
    """As SwanLab wants it: no questions asked, no copy of the terminal, and nothing looked up that the manifest has.

    Raises:
        UserError: SwanLab refuses a value.
    """
    from pydantic import ValidationError
    from swanlab import Settings

    probes = ("hardware", "runtime", "requirements", "conda", "git", "swanlab", "monitor")
    try:
        return Settings(
            mode=settings["mode"],
            interactive=False,
            project=Settings.Project(name=settings["project"], workspace=settings["workspace"]),
            experiment=Settings.Experiment(tags=[str(tag) for tag in settings["tags"]]),
            terminal=Settings.Terminal(proxy_type="none"),
            probe=Settings.Probe(**dict.fromkeys(probes, False)),
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]).replace("name", "project")
        where = f"logger.{key}={settings[key]}" if key in settings else f"SwanLab's setting {key}"
        raise UserError(f"{where}: {first['msg']}") from error


def _log_in() -> None:
    """Raises UserError where SwanLab's server does not accept the login of this machine, or there is none."""
    import swanlab
    from swanlab.exceptions import AuthenticationError

    with _on_stderr():
        try:
            swanlab.login()
        except AuthenticationError as error:
            instead = "or use logger.mode=offline and upload later"
            if swanlab.Settings().api_key is None:
                todo = f"run `swanlab login`, set SWANLAB_API_KEY, {instead}"
                raise UserError(f"logger.mode=cloud: there is no login to SwanLab; {todo}") from error
            todo = f"check the network and `swanlab login --relogin`, {instead}"
            raise UserError(f"logger.mode=cloud: SwanLab did not answer or refused the login; {todo}") from error
