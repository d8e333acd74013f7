"""The runs that a report is about, and what their methods are called."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slaterl.errors import UserError
from slaterl.runs.files import read_json
from slaterl.sweeps.records import Job, held, jobs

STAGES = ("online", "offline", "evaluate")  # those that end with a policy's return
# settings that two runs of one method may differ in: they make seeds of it
_SEEDS = {"seed", "ranker_seed"}


@dataclass(frozen=True)
class Record:
    """One run as its manifest and its result tell.

    Attributes:
        status: finished, running, interrupted or failed (of the manifest), waiting or killed (of a sweep's record).
        result: result.json of a finished run, else {}.
        task: all that determines the simulator, see build.env_spec.
    """

    path: Path
    status: str
    reason: str
    command: Sequence[str]
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    task: Mapping[str, Any]

    @property
    def env(self) -> str:
        """The environment's name, and that of the data that were learned from."""
        # a checkpoint is evaluated in its own environment, which the command need not name
        name = self.result.get("env", self.config["env"]["name"])
        return f"{name}, {self.result['dataset']} data" if "dataset" in self.result else name

    @property
    def seed(self) -> int:
        return self.result.get("seed", self.config["seed"])

    @property
    def steps(self) -> int:
        """Of training; 0 for what does not learn."""
        return self.result.get("steps", 0)


def find(runs: str | Sequence[str] | None, root: Path) -> list[Record]:
    """Every run in folders, globs or sweeps, each once; by default all below `root`.

    Raises:
        UserError: a pattern that matches no run.
    """
    if runs is None:
        patterns = [str(root / stage / "*" / "*") for stage in STAGES]
        return _unique(record for pattern in patterns for path in _matches(pattern) for record in _read(path))
    found = []
    for pattern in [runs] if isinstance(runs, str) else runs:
        records = [record for path in _matches(pattern) for record in _read(path)]
        if not records:
            raise UserError(f"report.runs={pattern}: no run of stage {', '.join(STAGES)} there")
        found += records
    return _unique(found)


def _matches(pattern: str) -> list[Path]:
    return [Path(path) for path in sorted(glob.glob(str(Path(pattern).expanduser())))]  # noqa: PTH207 (absolute ones)


def _unique(records: Iterable[Record]) -> list[Record]:
    return list({record.path.resolve(): record for record in records}.values())


def _read(path: Path) -> list[Record]:
    """The runs in a folder: itself, those of a sweep, or all below it."""
    if (path / "manifest.json").is_file():
        manifest = read_json(path / "manifest.json")
        of_policy = manifest["stage"] in STAGES and manifest["config"].get("evaluation") != "fqe"
        return [_of_manifest(path, manifest)] if of_policy else []
    if found := jobs(path):
        return [_of_job(job) for job in found if _stage_of(job) in STAGES]
    return [record for file in sorted(path.rglob("manifest.json")) for record in _read(file.parent)]


def _of_manifest(path: Path, manifest: Mapping[str, Any]) -> Record:
    finished = manifest["status"] == "finished" and (path / "result.json").is_file()
    status, reason = manifest["status"], manifest.get("reason", "")
    if status == "running" and not held(path / ".lock"):
        status, reason = "killed", "its process is gone without a word"
    return Record(
        path=path,
        status=status,
        reason=reason,
        command=manifest["command"][1:],
        config=manifest["config"],
        result=read_json(path / "result.json") if finished else {},
        task=manifest["spec"].get("env", manifest["config"]["env"]),
    )


def _stage_of(job: Job) -> str:
    """The stage's name; that of a job which could not even be composed is taken for the usual one."""
    return job.record.get("config", {}).get("stage", {}).get("name", STAGES[0])


def _of_job(job: Job) -> Record:
    """A job of a sweep: its run, or, where it has none yet, what the sweep wrote down of it."""
    record = job.record
    if "run" in record and (Path(record["run"]) / "manifest.json").is_file():
        return _of_manifest(Path(record["run"]), read_json(Path(record["run"]) / "manifest.json"))
    return Record(job.folder, job.state, job.reason, record["overrides"], record["config"], {}, record["config"]["env"])


def method_of(config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What a run's method is called: agent, ranker, item embeddings, a belief that is not the default."""
    if "checkpoint" in result:
        return f"{result['agent']} (checkpoint, step {result['step']:,})"
    parts = [config["agent"]["name"]]
    ranker = config["ranker"]["name"]
    if result.get("ranker", "none") != "none":
        parts.append(ranker)
    if result.get("compared_by"):
        parts.append(result["compared_by"])
    if result.get("belief") == "none":
        parts.append("oracle state")
    if result.get("test_users", 0) is None:
        parts.append("estimated by FQE")
    return " + ".join(parts)


def name_tasks(records: Sequence[Record]) -> list[str]:
    """One name for what each record's runs are compared in: environment and data, with what differs between those
    of one name, such as `env.boredom_threshold=3`. Items of another catalogue are told apart elsewhere."""
    plain = [record.env for record in records]
    names = []
    for record, name in zip(records, plain, strict=True):
        alike = [_task(other) for other, its in zip(records, plain, strict=True) if its == name]
        own = _task(record)
        differing = sorted(key for key in own if any(other.get(key, own[key]) != own[key] for other in alike))
        names.append(", ".join([name, *(f"{key}={own[key]}" for key in differing)]))
    return names


def _task(record: Record) -> dict[str, Any]:
    settings = {key: value for key, value in record.task.items() if key not in ("name", "item_embeddings")}
    return _flat({"env": settings, "dataset": record.result.get("dataset_run")})


def name_methods(records: Sequence[Record]) -> list[str]:
    """One name for each record: equal for the seeds of one method, different where any other setting differs.

    What differs between runs of one plain name is added to it, such as `agent.gamma=0`.
    """
    plain = [method_of(record.config, record.result) for record in records]
    names = []
    for record, name in zip(records, plain, strict=True):
        alike = [_settings(other) for other, its in zip(records, plain, strict=True) if its == name]
        own = _settings(record)
        differing = sorted(
            key for key in own if any(other.get(key) != own[key] for other in alike) and own[key] is not None
        )
        names.append(", ".join([name, *(f"{key}={own[key]}" for key in differing)]))
    return names


def without_lambdas(record: Record) -> Record:
    """The record of a run with GeMS as that of its method whatever the weights lambda_KL and lambda_click."""
    ranker = {key: value for key, value in record.config["ranker"].items() if key not in ("lambda_KL", "lambda_click")}
    return replace(record, config={**record.config, "ranker": {**ranker, "name": "gems"}})


def _settings(record: Record) -> dict[str, Any]:
    """What the configuration says of the method, flat: not the seeds, the environment, or where and how it ran."""
    if "checkpoint" in record.result:  # what the command says of agents is not what the file holds
        file = Path(record.result["checkpoint"])
        return {"checkpoint": f"{file.parent.name}/{file.name}"}
    parts = {key: record.config[key] for key in ("agent", "ranker", "belief", "params") if key in record.config}
    if record.result.get("compared_by"):
        parts["item_embeddings"] = record.config["item_embeddings"]
    if record.result.get("init_from"):
        parts["init_from"] = record.result["init_from"]
    sizes = ("max_steps", "random_steps", "num_envs", "batch_size", "capacity", "logged_data", "pretrain")
    sizes = ("offline", "logged_data", "pretrain") if "dataset" in record.result else sizes
    if record.steps:
        parts |= {key: record.config[key] for key in sizes if key in record.config}
    if not record.result.get("compared_by") and not record.result.get("ranker_run"):
        parts.pop("ranker", None)  # beside a method that does not use it
        parts.pop("params", None)
    # the lambdas are the ranker's; params only sets them
    return {key: value for key, value in _flat(parts).items() if not key.startswith("params.")}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Settings by their dotted keys, without names, classes and seeds."""
    if not isinstance(value, Mapping):
        return {path: value}
    found: dict[str, Any] = {}
    for key, entry in value.items():
        if key not in ("_target_", "name", *_SEEDS):
            found |= _flat(entry, f"{path}.{key}" if path else key)
    return found
