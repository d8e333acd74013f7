"""Find the runs of a report. A damaged file affects only its own run."""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slaterl.errors import UserError
from slaterl.report.records import REFERENCES, Record, method_of, settings_of, task_of
from slaterl.runs.files import first_line, read_json
from slaterl.sweeps.records import DIED, Job, held, jobs
from slaterl.training import metrics

STAGES = ("online", "offline", "evaluate")  # stages that end with a policy's return
# exceptions from reading a damaged file
_DAMAGED = (UserError, OSError, LookupError, TypeError, ValueError, AttributeError, csv.Error)


def find(runs: str | Sequence[str] | None, root: Path) -> list[Record]:
    """Find every run in folders, globs or sweeps, each once; by default all runs below `root`.

    A run that lies in several folders, as kept ones do, is read from the first of them.

    Raises:
        UserError: a pattern matches no run.
    """
    if runs is None:
        patterns = [str(root / stage / "*" / "*") for stage in STAGES]
        return _unique(record for pattern in patterns for path in _matches(pattern) for record in _read(path))
    found = []
    for pattern in [runs] if isinstance(runs, str) else runs:
        records = [record for path in _matches(pattern) for record in _read(path)]
        if not records:
            raise UserError(f"report.runs={pattern}: found no run of stage {', '.join(STAGES)}")
        found += records
    return _unique(found)


def _matches(pattern: str) -> list[Path]:
    return [Path(path) for path in sorted(glob.glob(str(Path(pattern).expanduser())))]  # noqa: PTH207 (absolute ones)


def _unique(records: Iterable[Record]) -> list[Record]:
    found: dict[tuple[str, ...], Record] = {}
    for record in records:
        # stage, environment and name with its digest: a run that was kept elsewhere, too, is the same run
        found.setdefault(record.path.resolve().parts[-3:], record)
    return list(found.values())


def _read(path: Path) -> list[Record]:
    """Read the run in a folder, or the runs of a sweep, or all runs below the folder."""
    if (path / "manifest.json").is_file():
        record = _of_run(path)
        return [] if record is None else [record]
    if found := jobs(path):
        records = [_of_job(job) for job in found]
        return [record for record in records if record is not None]
    return [record for file in sorted(path.rglob("manifest.json")) for record in _read(file.parent)]


def _of_run(path: Path) -> Record | None:
    """Read the run in a folder; None if its stage does not end with a policy's return."""
    record = Record(path, "damaged", "", command=[], config={}, result={}, task={})
    try:
        manifest = read_json(path / "manifest.json")
        if manifest["stage"] not in STAGES or manifest["config"].get("evaluation") in ("fqe", "ips", "user_model"):
            return None
        record = _of_manifest(path, manifest)
        _check_config(record)
    except _DAMAGED as error:
        return _damaged(replace(record, config={}), path / "manifest.json", error)
    if record.status != "finished" or not (path / "result.json").is_file():
        return record
    try:
        found = replace(record, result=read_json(path / "result.json"))
        untested = found.config.get("offline", {}).get("validation") == "none"
        if untested and found.result.get("test_return", 0) is None:
            return None
        _check_result(found)
    except _DAMAGED as error:
        return _damaged(record, path / "result.json", error)
    try:
        if found.steps:
            metrics.curve(path / "metrics.csv", "val/return")
    except _DAMAGED as error:
        return _damaged(record, path / "metrics.csv", error)
    return found


def _of_manifest(path: Path, manifest: Mapping[str, Any]) -> Record:
    status, reason = manifest["status"], manifest.get("reason", "")
    if status == "running" and not held(path / ".lock"):
        status, reason = "killed", DIED
    config = manifest["config"]
    task = manifest["spec"].get("env", config["env"])
    return Record(path, status, reason, manifest["command"][1:], config, result={}, task=task)


def _damaged(record: Record, file: Path, error: Exception) -> Record:
    reason = str(error)
    if isinstance(error, KeyError):
        reason = f"{file}: damaged: no field {error.args[0]}"
    elif not isinstance(error, UserError):
        reason = f"{file}: damaged: {first_line(error)}"
    return replace(record, status="damaged", reason=reason)


def _check_config(record: Record) -> None:
    """Raise one of `_DAMAGED` if a report cannot use the configuration."""
    task_of(record)
    settings_of(record)
    names = [record.env, method_of(record.config, {}), record.reason, *record.command]
    if not all(isinstance(name, str) for name in names):
        raise TypeError("a name that is not text")


def _check_result(record: Record) -> None:
    """Raise one of `_DAMAGED` if a report cannot use the result."""
    settings_of(record)
    result = record.result
    if not all(isinstance(name, str) for name in (result["item_embeddings"], method_of(record.config, result))):
        raise TypeError("a name that is not text")
    returns = ("test_return_sampled", "val_return", "random_return", "expert_return", *REFERENCES)
    optional = [result["test_users"], *(result.get(key) for key in returns)]
    numbers = [result["test_return"], record.seed, record.steps, *(value for value in optional if value is not None)]
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise TypeError("text in place of a number")


def _of_job(job: Job) -> Record | None:
    """Read the run of a sweep's job, or the job's own record if it has no run yet; None for another stage."""
    record = Record(job.folder, job.state, job.reason, command=[], config={}, result={}, task={})
    if job.state == "damaged":
        return record
    try:
        if "run" in job.record and (Path(job.record["run"]) / "manifest.json").is_file():
            return _of_run(Path(job.record["run"]))
        config = job.record["config"]
        if config["stage"]["name"] not in STAGES:
            return None
        found = replace(record, command=job.record["overrides"], config=config, task=config["env"])
        _check_config(found)
    except _DAMAGED as error:
        return _damaged(record, job.folder / "job.json", error)
    return found
