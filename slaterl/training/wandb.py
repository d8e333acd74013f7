"""Weights & Biases, through Lightning's logger."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import wandb
from lightning.pytorch import loggers

from slaterl.errors import UserError
from slaterl.training.run_logger import Ending, Name, RunDetails, RunLogger, Tags

_EXIT_CODES = {"finished": 0, "crashed": 1, "aborted": 255}  # wandb shows the last one as killed


class WandbLogger(RunLogger, loggers.WandbLogger):
    """Log to Weights & Biases.

    Args:
        run: its folder gets a folder `wandb`.
        mode: online needs a login; upload offline runs later with `wandb sync`.
        entity: a team; None uses the user's default.
        tags: in addition to the run's labels.
    """

    ADVICE: ClassVar[str] = "logger.wandb.mode=offline needs neither network nor account"

    def __init__(
        self,
        *,
        run: RunDetails,
        mode: Literal["online", "offline", "disabled"] = "online",
        project: Name = "slaterl",
        entity: Name | None = None,
        tags: Tags = (),  # type: ignore[assignment]
    ) -> None:
        self.mode = mode
        experiment = wandb.init(
            mode=mode,
            project=project,
            entity=entity,
            dir=run.folder,
            name=run.name,
            id=run.id,
            resume="allow",
            group=run.group,
            job_type=run.labels["stage"],
            tags=run.tags(tags),
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
        )
        experiment.define_metric("trainer/global_step")  # Lightning logs each row with its step under this name
        experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        super().__init__(experiment=experiment, save_dir=run.folder)

    @classmethod
    def check(cls, path: str, settings: Mapping[str, Any]) -> None:
        if settings.get("mode", "online") != "online":
            return
        instead = f"or use {path}.mode=offline and upload later"
        with contextlib.redirect_stdout(sys.stderr):
            try:
                found = wandb.login(prompt=False)
            except wandb.errors.AuthenticationError as error:
                todo = f"check the network and `wandb login --relogin`, {instead}"
                raise UserError(f"{path}.mode=online: wandb did not answer or refused the login; {todo}") from error
        if not found:
            todo = f"run `wandb login`, set WANDB_API_KEY, {instead}"
            raise UserError(f"{path}.mode=online: no login to wandb on this machine; {todo}")

    def resume(self, step: int, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Log the rows again in offline mode, where wandb starts a new folder, so that the folder is complete."""
        if self.mode == "offline":
            for at, row in rows:
                self.log_metrics(row, at)

    def end(self, state: Ending, reason: str | None) -> None:
        if reason:
            self.experiment.summary["ended_by"] = reason
        self.experiment.finish(exit_code=_EXIT_CODES[state])  # the next training of this process gets its own run
