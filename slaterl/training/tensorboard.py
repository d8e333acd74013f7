"""TensorBoard: event files in the folder `tensorboard` of the run."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import loggers
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from slaterl.bounds import Positive
from slaterl.training.run_logger import RunDetails, RunLogger


class TensorBoardLogger(RunLogger, loggers.TensorBoardLogger):
    """Log to TensorBoard. The configuration is in `hparams.yaml` next to the event files.

    Args:
        run: its folder gets a folder `tensorboard`; a resumed run continues there.
        prefix: precedes the name of each metric.
        flush_secs: seconds until a row is written to the file, at most.
    """

    def __init__(self, *, run: RunDetails, prefix: str = "", flush_secs: Positive = 30) -> None:
        super().__init__(
            save_dir=run.folder,
            name="tensorboard",
            version="",
            default_hp_metric=False,  # it would draw a curve of one point at -1
            prefix=prefix,
            flush_secs=flush_secs,
        )

    def resume(self, step: int, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Hide rows logged after `step`: that work was lost, and the same steps follow again."""
        start = Event(session_log=SessionLog(status=SessionLog.START))
        self.experiment.file_writer.add_event(start, step=step + 1)
