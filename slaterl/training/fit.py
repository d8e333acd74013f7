"""One fit for everything that learns: train, validate, log, checkpoint, resume."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment

from slaterl.console import note, progress, tell
from slaterl.errors import Interrupted, UserError
from slaterl.layers import products_by
from slaterl.runs.signals import handling
from slaterl.training import checkpoints
from slaterl.training.kept import PREFIX, Kept
from slaterl.training.learner import Learner
from slaterl.training.loggers import ChosenLogger, LogRow, logging_to
from slaterl.training.metrics import MetricsFile

AUTOSAVE_SECONDS = 120  # the most work that a kill between two validations can lose


class Data(Protocol):
    """The interface of a data module for `fit`, in addition to a sized `train_dataloader`."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Progress of the training, logged with every row."""

    @property
    def measures(self) -> Mapping[str, float]:
        """Statistics of the data collected since the last row."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When to validate, log, save and stop, in steps.

    Attributes:
        save_every_n_steps: keep `step<k>.ckpt` this often; None keeps none.
        keep: number of checkpoints `kept-step<k>.ckpt` to keep, without optimisers, spread over the scores.
        patience: stop after so many validations in a row without a better score; None never stops early.
        min_delta: a score is better in this sense if it beats the best so far by more than this.
    """

    max_steps: int
    val_every_n_steps: int
    log_every_n_steps: int
    save_every_n_steps: int | None = None
    keep: int = 0
    patience: int | None = None
    min_delta: float = 0.0


def fit(
    learner: Learner,
    data: Any,
    *,
    folder: Path,
    kind: str,
    config: dict[str, Any],
    schedule: Schedule,
    validate: Callable[[], dict[str, float]],
    validated: Sequence[str],
    score: str,
    maximise: bool,
    loggers: Sequence[ChosenLogger],
    title: str,
) -> dict[str, Any]:
    """Train to the end of the schedule, or until its patience ends. Resumes from `last.ckpt` if `folder` has one.

    Args:
        data: a LightningDataModule that is also a `Data`.
        kind, config: written into every checkpoint next to its state.
        validate: measures the learner; `score` names the metric that chooses `best.ckpt`.
        validated: names of the metrics that `validate` returns, in the order of their columns in metrics.csv.
        maximise: whether a larger score is better.
        title: title of the progress bar.

    Returns:
        `best_step`, `best_score`, `best_metrics` (all of that validation), and `seconds` spent training and validating
        over all starts.

    Raises:
        Interrupted: on a signal to stop (see runs/signals.py), after `last.ckpt` was written.
        TrainingDiverged: a term of the loss is not finite.
    """
    sign = 1.0 if maximise else -1.0
    loop = _Loop(data, folder, {"kind": kind, "config": config}, schedule, validate, validated, score, sign, title)
    if (folder / "last.ckpt").is_file():
        loop.resume(learner, checkpoints.load(folder / "last.ckpt", kind))
    if not loop.over(learner.step):
        _quiet_lightning()
        trainer = L.Trainer(
            accelerator="gpu" if learner.device.type == "cuda" else "cpu",
            devices=[learner.device.index or 0] if learner.device.type == "cuda" else 1,
            max_epochs=1,
            logger=False,  # logging_to opens and closes the loggers, and tells them why the run ended
            callbacks=[loop],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[LightningEnvironment()],  # one process, even inside a SLURM job
            default_root_dir=folder,
        )
        with logging_to(loggers, folder / "metrics.csv", learner.step) as loop.log_row:
            trainer.fit(learner, datamodule=data)
    best = {f"best_{key}": value for key, value in loop.best.items()}
    return {**best, "seconds": loop.seconds}


class _Loop(L.Callback):
    """Logs, validates and saves after each update. Counts `learner.step`, not Lightning's batches."""

    log_row: LogRow  # writes to the loggers while they are open

    def __init__(
        self,
        data: Data,
        folder: Path,
        about: dict[str, Any],
        schedule: Schedule,
        validate: Callable[[], dict[str, float]],
        validated: Sequence[str],
        score: str,
        sign: float,
        title: str,
    ) -> None:
        self.data, self.folder, self.about, self.schedule = data, folder, about, schedule
        self.validate, self.validated = validate, validated
        self.score, self.sign, self.title = score, sign, title
        self.best: dict[str, Any] = {"step": 0, "score": None, "metrics": {}}
        self.kept = Kept(folder, schedule.keep)
        self.stale = 0  # validations in a row without a better score
        self.seconds = 0.0
        self.signum = 0
        self.save_asked = False
        self.saved_step: int | None = None  # step of last.ckpt
        self.open = contextlib.ExitStack()

    def resume(self, learner: Learner, state: dict[str, Any]) -> None:
        """Restore learner, data and this loop from a checkpoint."""
        where = self.folder / "last.ckpt"
        if state["device"] != learner.device.type:  # their random streams differ
            raise UserError(f"device={learner.device.type}: {where} was written on {state['device']}; resume it there")
        with checkpoints.taken_by(learner, where, advice="; remove its folder to start again"):
            learner.load_learner_state(state["learner"])
        self.data.load_state_dict(state["data"])
        self.best, self.seconds = {"metrics": {}, **state["best"]}, state["seconds"]  # older versions had no metrics
        self.stale = state.get("stale", 0)  # older versions had no patience
        self.kept.scores = dict(state.get("kept", {}))
        self.kept.remove_others()  # of work that a kill lost
        self.saved_step = learner.step
        if self.over(learner.step):
            return
        for name, now in _arithmetic().items() if learner.device.type == "cpu" else ():
            if state.get(name, now) != now:  # older checkpoints have neither
                differ = "the results will differ from those of an undisturbed run"
                note(f"warning: {name}={now}, but {where} was written with {name}={state[name]}; {differ}")
        note(f"{self.title}: resuming from step {learner.step:,}")

    def over(self, step: int) -> bool:
        """Whether the training ends at this step: its last one, or the one at which the patience ended."""
        patience = self.schedule.patience
        return step >= self.schedule.max_steps or (patience is not None and self.stale >= patience)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        counters = self.data.counters
        columns = ["step", *counters, *pl_module.TERMS, *self.data.measures, *self.validated, "time/seconds"]
        columns += [f"speed/{name}_per_s" for name in ("steps", "turns") if name == "steps" or name in counters]
        self.metrics = MetricsFile(self.folder / "metrics.csv", columns, pl_module.step)
        self.open.callback(self.metrics.close)
        self.open.enter_context(handling(stop=self._on_stop, save=self._on_save))
        bar = progress(self.title, self.schedule.max_steps, "steps", start=pl_module.step)
        self.show = self.open.enter_context(bar)
        self._mark(pl_module.step)
        self.saved = time.perf_counter()

    def _on_stop(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:  # the second signal stops at once
            saved = "nothing was saved; rerun the same command to start again"
            if self.saved_step is not None:
                saved = f"nothing new was saved; rerun the same command to resume from step {self.saved_step:,}"
            raise Interrupted(signum, saved)
        self.signum = signum

    def _on_save(self, signum: int, frame: FrameType | None) -> None:
        self.save_asked = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, schedule = pl_module.step, self.schedule
        before = step - pl_module.steps_in(batch)

        def due(every: int) -> bool:
            return step // every > before // every

        validating = due(schedule.val_every_n_steps) or step >= schedule.max_steps
        row: dict[str, Any] = {}
        if validating or due(schedule.log_every_n_steps):
            row = self._training_row(pl_module)
            self.show(step)
        if validating:
            row |= self._validate(pl_module, step)
        if row:
            self.metrics.append(row)
            self.log_row({k: v for k, v in row.items() if k != "step"}, step)
        if schedule.save_every_n_steps and due(schedule.save_every_n_steps):
            self._save(pl_module, f"step{step}.ckpt")
        asked = self.signum or self.save_asked
        if validating or asked or time.perf_counter() - self.saved > AUTOSAVE_SECONDS:
            self.save_asked = False  # reset first, so that a signal during the save causes another one
            self._save(pl_module, "last.ckpt", data=self.data.state_dict(), stale=self.stale, kept=self.kept.scores)
            self.kept.remove_others()
            self.saved, self.saved_step = time.perf_counter(), step
        if self.signum:
            raise Interrupted(self.signum, f"saved at step {step:,}; rerun the same command to resume")
        if self.over(step) and step < schedule.max_steps:
            self.show(step, total=step)
            margin = f" by more than {schedule.min_delta:g}" if schedule.min_delta else ""
            note(f"{self.title}: stopped early: {self.stale} validations did not improve {self.score}{margin}")
            trainer.should_stop = True

    def _validate(self, learner: Learner, step: int) -> dict[str, float]:
        metrics = self.validate()
        score, best = metrics[self.score], self.best["score"]
        gain = math.inf if best is None else self.sign * (score - best)
        self.stale = 0 if gain > self.schedule.min_delta else self.stale + 1
        if gain > 0:
            self.best = {"step": step, "score": score, "metrics": metrics}
            self._save(learner, "best.ckpt")
        if self.kept.add(step, score):
            acts = {"module": learner.state_dict(), "step": step}
            self._save(learner, f"{PREFIX}{step}.ckpt", learner=acts)
        self.show(step, score=score)
        tell(done=step, score=score, scored=self.score)  # a study may end the run here
        shown = f"{self.score} {score:.4g}, best {self.best['score']:.4g} at step {self.best['step']:,}"
        note(f"{self.title}: step {step:,}: {shown}")
        return metrics

    def _save(self, learner: Learner, name: str, /, **more: Any) -> None:
        learner.check_finite()  # never overwrite a good checkpoint with NaN
        state = {**self.about, "learner": learner.learner_state(), "best": dict(self.best)}
        state |= {"device": learner.device.type, **_arithmetic()}
        seconds = self.seconds + time.perf_counter() - self.marked[0]
        checkpoints.save(self.folder / name, {**state, "seconds": seconds, **more})

    def _mark(self, step: int) -> None:
        self.marked = (time.perf_counter(), step, self.data.counters.get("turns", 0))

    def _training_row(self, learner: Learner) -> dict[str, Any]:
        now, step, counters = time.perf_counter(), learner.step, self.data.counters
        elapsed = now - self.marked[0]
        means = learner.meter.read()
        if means:
            learner.watch(step, means)
        row: dict[str, Any] = {"step": step, **counters, **means, **self.data.measures}
        row["speed/steps_per_s"] = (step - self.marked[1]) / elapsed
        if "turns" in counters:
            row["speed/turns_per_s"] = (counters["turns"] - self.marked[2]) / elapsed
        self.seconds += elapsed
        row["time/seconds"] = self.seconds
        self._mark(step)
        return row

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        self.open.close()


def _arithmetic() -> dict[str, Any]:
    return {"threads": torch.get_num_threads(), "products_by": products_by()}


def _quiet_lightning() -> None:
    """Silence Lightning's advice on data loaders and devices, which does not apply here."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
