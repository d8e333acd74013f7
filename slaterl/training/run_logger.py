"""Base class of loggers that also check their settings, resume, and record how a run ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from lightning.pytorch.loggers import Logger
from pydantic import Field

Name = Annotated[str, Field(min_length=1, description="a name")]
Tags = Annotated[list[Any], Field(description="a list, such as [baseline,night]")]
Labels = Annotated[dict[str, Any], Field(description="names with values, such as {team:search}")]
Ending = Literal["finished", "aborted", "crashed"]


@dataclass(frozen=True)
class RunDetails:
    """Facts about a run that loggers record.

    Attributes:
        folder: the run's folder; all files of a logger belong there.
        name: name of the folder.
        id: 21 lower-case letters and digits. A resumed run keeps its id; a run whose folder was removed gets a new one.
        labels: stage, env, ranker and seed, and agent and params if the run has them.
        group: one name for all runs of a sweep, kept if the sweep is launched again; None outside a sweep.
        config: the resolved configuration.
    """

    folder: Path
    name: str
    id: str
    labels: Mapping[str, Any]
    group: str | None
    config: Mapping[str, Any]

    def tags(self, extra: Sequence[Any] = ()) -> list[str]:
        """Return the extra tags and the labels, each once, as text."""
        labels = (f"seed{value}" if name == "seed" else value for name, value in self.labels.items())
        return list(dict.fromkeys(str(tag) for tag in (*extra, *labels)))


class RunLogger(Logger):
    """A Lightning logger with slaterl's additions. Its constructor takes `run: RunDetails` and the settings by name.

    Attributes:
        ADVICE: advice at the end of the message that the logger cannot start.
    """

    ADVICE: ClassVar[str] = ""

    @classmethod
    def check(cls, path: str, settings: Mapping[str, Any]) -> None:
        """Refuse, before anything starts, settings that would fail later.

        Args:
            path: dotted key of the settings, such as logger.swanlab, for messages.

        Raises:
            UserError: names the setting.
        """

    def resume(self, step: int, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Continue after `step`. Called once the logger is open.

        Args:
            rows: steps and values of metrics.csv up to `step`.
        """

    def end(self, state: Ending, reason: str | None) -> None:
        """Close the logger.

        Args:
            reason: the error that ended the run; None if it finished.
        """
        self.finalize("success" if state == "finished" else "failed")
