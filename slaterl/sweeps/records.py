"""Records of a sweep's jobs: `<number>/job.json`, written first by the launcher and then by the job itself.

The live table and stage=status read only these files. So they work on every machine that shares the file system, and
after all processes have ended.
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
from slaterl.errors import Interrupted, Pruned, UserError
from slaterl.runs.files import read_json, write_json

WRITE_EVERY_SECONDS = 1.0
DIED = "the process died without reporting an error"
_KINDS: dict[str, type] = {"status": str, "overrides": list, "config": dict}


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        state: waiting, running, finished, failed, interrupted (resumes if started again), pruned (by a study), killed,
            or damaged (its record cannot be read).
        record: content of job.json; only the reason if the job is damaged.
    """

    folder: Path
    state: str
    record: dict[str, Any]

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def told(self) -> bool:
        """Whether the record says how the job ended."""
        return self.state not in ("waiting", "running", "killed")

    @property
    def reason(self) -> str:
        return self.record.get("reason", DIED if self.state == "killed" else "")


def announce(sweep: Path, number: int, overrides: Iterable[str], config: DictConfig) -> None:
    """Write the record of a job before it starts, with the configuration that it must use."""
    folder = sweep / str(number)
    plain = {key: value for key, value in _container(config).items() if key != "hydra"}
    write_json(folder / "job.json", {"status": "waiting", "overrides": list(overrides), "config": plain})


def assign(folder: Path, slot: str) -> None:
    """Record the slot of a job."""
    with contextlib.suppress(UserError):  # the job itself will report a full disk
        write_json(folder / "job.json", {**read_json(folder / "job.json"), "slot": slot})


@contextlib.contextmanager
def recording(sweep: Path, number: int, config: DictConfig) -> Iterator[None]:
    """Keep a job's record up to date while the block runs the job.

    The block holds a lock. If a record says "running" and nobody holds its lock, the process was killed.

    Raises:
        UserError: the configuration differs from the announced one. Jobs compose it from conf/ when they start.
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
                    raise UserError(f"{changed[0]}: conf/ has changed since this sweep was launched; launch it again")
                yield
            except Interrupted as error:
                record.end("interrupted", str(error))
                raise
            except Pruned as error:
                record.end("pruned", str(error).removeprefix("pruned: "))
                raise
            except BaseException as error:
                record.end("failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
                raise
            record.end("finished")


class _Record:
    """job.json of a running job. It is written after each change; progress is written at most once a second."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "job.json"
        announced = read_json(self.file) if self.file.is_file() else {}
        kept: dict[str, Any] = {key: announced[key] for key in ("overrides", "config", "slot") if key in announced}
        self.entries: dict[str, Any] = {"status": "running", **kept, "host": socket.gethostname(), "pid": os.getpid()}
        self._write()

    def hear(self, facts: dict[str, Any]) -> None:
        if "run" in facts:  # the first run is the job's own; the others are its inputs
            facts = {"run": self.entries.get("run", facts["run"])}
        unknown = {key: None for key, value in facts.items() if isinstance(value, float) and not math.isfinite(value)}
        self.entries |= facts | unknown  # JSON has no NaN
        if "done" not in facts or time.monotonic() - self.written > WRITE_EVERY_SECONDS:
            self._write()

    def end(self, status: str, reason: str | None = None) -> None:
        self.entries |= {"status": status} | ({"reason": reason} if reason else {})
        self._write()

    def _write(self) -> None:
        with contextlib.suppress(UserError):  # the run itself will report a full disk
            write_json(self.file, self.entries)
        self.written = time.monotonic()


def jobs(sweep: Path) -> list[Job]:
    """All jobs of the sweep in a folder, by number."""
    folders = [file.parent for file in sweep.glob("*/job.json") if file.parent.name.isdecimal()]
    return [read_job(folder) for folder in sorted(folders, key=lambda folder: int(folder.name))]


def read_job(folder: Path) -> Job:
    """Read a job's record. A record that cannot be read gives a damaged job, so that the others are shown."""
    try:
        record = _read(folder / "job.json")
        state = record["status"]
        if state == "running" and not held(folder / ".lock"):
            record = _read(folder / "job.json")  # the job may have ended meanwhile
            state = "killed" if record["status"] == "running" else record["status"]
    except UserError as error:
        return Job(folder, "damaged", {"status": "damaged", "reason": str(error)})
    return Job(folder, state, record)


def _read(file: Path) -> dict[str, Any]:
    """Raises UserError if the file cannot be read or is not a job's record."""
    record = read_json(file)
    if not isinstance(record, dict) or "status" not in record:
        raise UserError(f"{file}: damaged: no field status")
    for key, kind in _KINDS.items():
        if key in record and not isinstance(record[key], kind):
            raise UserError(f"{file}: damaged: field {key} is not a {kind.__name__}")
    for key in ("done", "total", "speed", "score"):
        if not isinstance(record.get(key, 0), int | float | None):
            raise UserError(f"{file}: damaged: field {key} is not a number")
    return record


def end_killed(folder: Path, reason: str) -> None:
    """Record why a job ended, if it could not do so itself."""
    record = read_json(folder / "job.json")
    write_json(folder / "job.json", {**record, "status": "failed", "reason": reason})


def held(file: Path) -> bool:
    """Whether a process holds the lock."""
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
    """Yield the dotted keys under which two plain values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b:
        yield path
