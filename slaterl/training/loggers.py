"""The loggers of conf/logger: Lightning loggers that follow a run next to metrics.csv, which every run writes.

A logger is a node with a `_target_` under `logger`, so a new one needs a YAML file and no code here. Its library is
imported only if it is chosen. If a logger fails during training, it loses rows, but the run continues.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from slaterl.console import note
from slaterl.errors import Interrupted, UserError
from slaterl.runs.files import first_line
from slaterl.runs.run import Run
from slaterl.training import metrics
from slaterl.training.logger_settings import class_of, nodes_of

if TYPE_CHECKING:  # Lightning takes seconds to import, and a run with metrics.csv alone does not need it here
    from lightning.pytorch.loggers import Logger

LogRow = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True)
class ChosenLogger:
    """A logger that `logging_to` makes.

    Attributes:
        name: name of the node, such as wandb for logger.wandb.
        config: hyperparameters that it records.
    """

    name: str
    make: Callable[[], Logger]
    config: Mapping[str, Any]


def make_loggers(cfg: DictConfig, run: Run) -> list[ChosenLogger]:
    """Prepare the chosen loggers of a run, for `fit`. Nothing is opened or written before `logging_to`.

    A constructor gets its settings and some of these arguments: `save_dir` (the run's folder), `name` and `run_name`
    (name of that folder), `version` and `id` (the same each time the run is resumed). It gets an argument if its
    signature names it and the YAML file omits it or sets it to null. A RunLogger gets `run`, a RunDetails, instead.
    """
    nodes = nodes_of(cfg)
    if not nodes:
        return []
    from slaterl.training.run_logger import RunDetails

    labels: dict[str, Any] = {"stage": run.stage, "env": run.env, "ranker": cfg.ranker.name}
    labels["seed"] = run.spec.get("seed", cfg.seed)
    if "agent" in run.spec:  # a ranker is pretrained for all agents
        labels["agent"] = cfg.agent.name
    if HydraConfig.initialized():
        labels["params"] = HydraConfig.get().runtime.choices["params"]
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    config = {**values, "run": {**labels, "digest": run.digest}}
    details = RunDetails(run.path, run.path.name, _id_of(run), labels, _sweep_name(), config)
    offers = {"save_dir": str(run.path), "version": details.id, "id": details.id, "run": details}
    offers |= dict.fromkeys(("name", "run_name"), details.name)

    def maker(name: str, node: Mapping[str, Any]) -> Callable[[], Logger]:
        target = class_of(name, node["_target_"])
        settings = {key: value for key, value in node.items() if key != "_target_"}
        takes = inspect.signature(target).parameters
        supplied = {key: value for key, value in offers.items() if key in takes and settings.get(key) is None}
        return lambda: target(**{**settings, **supplied})

    return [ChosenLogger(name, maker(name, node), config) for name, node in nodes.items()]


@contextlib.contextmanager
def logging_to(chosen: Sequence[ChosenLogger], metrics_file: Path, step: int) -> Iterator[LogRow]:
    """Open the loggers for the block, and close them with the reason for its end. Yields `log_row(values, step)`.

    Args:
        metrics_file, step: metrics.csv of the run, and the step after which it resumes.

    Raises:
        UserError: a logger cannot start.
    """
    if not chosen:
        yield lambda values, at: None
        return
    from slaterl.training.run_logger import Ending

    opened: dict[str, Logger] = {}
    failed: set[str] = set()

    def log_row(values: Mapping[str, float], at: int) -> None:
        for name in [name for name in opened if name not in failed]:
            try:
                opened[name].log_metrics(dict(values), at)
                opened[name].save()
            except Exception as error:
                failed.add(name)
                note(f"warning: logger={name}: {_shown(error)}; from step {at:,} on, rows go to metrics.csv only")

    state: Ending = "finished"
    reason: str | None = None
    with contextlib.redirect_stdout(sys.stderr):  # the last line of stdout is the run's folder
        try:
            for one in chosen:
                _open(one, opened, metrics_file, step)
            yield log_row
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt | SystemExit)
            state, reason = "aborted" if stopped else "crashed", f"{type(error).__name__}: {error}"
            raise
        finally:
            for name, logger in opened.items():
                _close(name, logger, state, reason)


def _open(one: ChosenLogger, opened: dict[str, Logger], metrics_file: Path, step: int) -> None:
    from slaterl.training.run_logger import RunLogger

    logger: Logger | None = None
    try:
        logger = one.make()
        _ = logger.experiment  # type: ignore[attr-defined]  # most loggers start when this is read
        opened[one.name] = logger
        logger.log_hyperparams(dict(one.config))
        if isinstance(logger, RunLogger) and step > 0:
            logger.resume(step, list(_rows(metrics_file, step)))
    except Exception as error:
        advice = f"; {logger.ADVICE}" if isinstance(logger, RunLogger) and logger.ADVICE else ""
        raise UserError(f"logger={one.name} cannot start ({_shown(error)}){advice}") from error


def _close(name: str, logger: Logger, state: Any, reason: str | None) -> None:
    from slaterl.training.run_logger import RunLogger

    try:
        if isinstance(logger, RunLogger):
            logger.end(state, reason)
        else:
            logger.finalize("success" if state == "finished" else "failed")
    except Exception as error:  # the training is unaffected
        note(f"warning: logger={name} cannot be closed ({_shown(error)})")


def _rows(metrics_file: Path, step: int) -> Iterator[tuple[int, dict[str, float]]]:
    for row in metrics.read(metrics_file) if metrics_file.is_file() else []:
        at = int(row.pop("step"))
        if at <= step:
            yield at, {name: float(value) for name, value in row.items() if value}


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _sweep_name() -> str | None:
    """Derive one name for all runs of a sweep from its command, so that a second launch gets the same name."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    hydra = OmegaConf.load(Path(HydraConfig.get().sweep.dir) / "multirun.yaml").hydra
    command = sorted(entry for entry in hydra.overrides.task if not entry.lstrip("+~").startswith("logger"))
    digest = hashlib.sha256("\n".join(command).encode()).hexdigest()[:6]
    return f"{hydra.runtime.choices.experiment or 'sweep'}-{digest}"


def _id_of(run: Run) -> str:
    """Return an id that a resumed run keeps. A removed folder gets a new one, because SwanLab keeps an id's old points.

    Older servers of SwanLab accept only ids of 21 lower-case letters and digits.
    """
    born = hashlib.sha256(run.manifest.get("started", "").encode()).hexdigest()
    return run.digest + born[: 21 - len(run.digest)]
