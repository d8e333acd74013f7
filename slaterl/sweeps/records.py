"""What a sweep leaves in its folder: `<number>/job.json` of each job, written by its launcher and then by itself.

The live table and stage=status are made from these files alone, so that they work across machines that share the
file system, and after all processes are gone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from slaterl.console import listening
from slaterl.errors import Interrupted, UserError
from slaterl.runs.files import read_json, write_json

WRITE_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as its record tells.

    Attributes:
        state: waiting, running, finished, failed, interrupted (saved; goes on with the next start), or killed.
    """

    folder: Path
    state: str
    record: dict[str, Any]

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def told(self) -> bool:
        """Whether its record says how it ended."""
        return self.state not in ("waiting", "running", "killed")

    @property
    def reason(self) -> str:
        died = "its process is gone without a word" if self.state == "killed" else ""
        return self.record.get("reason", died)


def announce(sweep: Path, number: int, overrides: Iterable[str], config: DictConfig) -> None:
    """Write down a job before it starts, with the configuration that it is to have."""
    folder = sweep / str(number)
    plain = {key: value for key, value in _container(config).items() if key != "hydra"}
    write_json(folder / "job.json", {"status": "waiting", "overrides": list(overrides), "config": plain})


def assign(folder: Path, slot: str) -> None:
    """Write down where a job will run."""
    with contextlib.suppress(UserError):  # the job itself meets the full disk and says so
        write_json(folder / "job.json", {**read_json(folder / "job.json"), "slot": slot})


@contextlib.contextmanager
def recording(sweep: Path, number: int, config: DictConfig) -> Iterator[None]:
    """Keep a job's record up to date while the block makes it.

    A lock is held meanwhile: a record that says "running" without anyone holding it is that of a killed process.

    Raises:
        UserError: the configuration is not the one that was announced: jobs compose it from conf/ when they start.
    """
    folder = sweep / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        record = _Record(folder)
        with listening(record.hear):
            try:
                announced = record.entries.get("config")
                if announced is not None and announced != _through_json(_container(config)):
                    changed = sorted(_differences(announced, _through_json(_container(config))))
                    raise UserError(f"{changed[0]}: conf/ was changed since this sweep was launched; launch it again")
                yield
            except Interrupted as error:
                record.end("interrupted", str(error))
                raise
            except BaseException as error:
                record.end("failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
                raise
            record.end("finished")


class _Record:
    """job.json of a running job; written when something changes, progress at most once a second."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "job.json"
        announced = read_json(self.file) if self.file.is_file() else {}
        kept = {key: announced[key] for key in ("overrides", "config", "slot") if key in announced}
        self.entries: dict[str, Any] = {"status": "running", **kept, "host": socket.gethostname(), "pid": os.getpid()}
        self._write()

    def hear(self, facts: dict[str, Any]) -> None:
        if "run" in facts:  # the first is the job's own, the others are its inputs
            facts = {"run": self.entries.get("run", facts["run"])}
        unknown = {key: None for key, value in facts.items() if isinstance(value, float) and not math.isfinite(value)}
        self.entries |= facts | unknown  # JSON has no NaN
        if "done" not in facts or time.monotonic() - self.written > WRITE_EVERY_SECONDS:
            self._write()

    def end(self, status: str, reason: str | None = None) -> None:
        self.entries |= {"status": status} | ({"reason": reason} if reason else {})
        self._write()

    def _write(self) -> None:
        with contextlib.suppress(UserError):  # the run itself meets the full disk and says so
            write_json(self.file, self.entries)
        self.written = time.monotonic()


def jobs(sweep: Path) -> list[Job]:
    """All jobs of the sweep in a folder, by number."""
    folders = sorted((file.parent for file in sweep.glob("*/job.json")), key=lambda folder: int(folder.name))
    return [read_job(folder) for folder in folders]


def read_job(folder: Path) -> Job:
    record = read_json(folder / "job.json")
    state = record["status"]
    if state == "running" and not held(folder / ".lock"):
        record = read_json(folder / "job.json")  # it may have ended between the two looks
        state = "killed" if record["status"] == "running" else record["status"]
    return Job(folder, state, record)


def end_killed(folder: Path, reason: str) -> None:
    """Give the record of a job that did not end by itself the reason of its death."""
    record = read_json(folder / "job.json")
    write_json(folder / "job.json", {**record, "status": "failed", "reason": reason})


def held(file: Path) -> bool:
    try:
        with FileLock(file).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _container(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=False)  # type: ignore[return-value]


def _through_json(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value))


def _differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """The dotted keys under which two plain values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b:
        yield path
