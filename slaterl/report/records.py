"""A run of a report, and the names of its task and its method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slaterl.config.build import pretraining_of

# settings that may differ between two runs of one method
_SEEDS = {"seed", "ranker_seed"}
# what learned policies are compared with: entry of result.json, and name in the report
REFERENCES = {
    "dataset_return": "the data (mean return)",
    "most_frequent_slate_return": "each slot's most frequent item, shown to all",
    "best_constant_return": "best constant slate of a search",
}


@dataclass(frozen=True)
class Record:
    """One run, read from its manifest and result.

    Attributes:
        status: finished, running, interrupted or failed (from the manifest); waiting or killed (from a sweep's
            record); damaged, if a file cannot be read.
        reason: why the run has no result.
        config: the composed configuration; {} if the manifest is damaged.
        result: result.json of a finished run, else {}.
        task: all settings of the simulator, see config.build.env_spec.
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
        """Name of the environment, and of the dataset if the run learned from one."""
        # a checkpoint brings its own environment, so the command need not name it
        name = self.result["env"] if "env" in self.result else self.config["env"]["name"]
        return f"{name}, {self.result['dataset']} data" if "dataset" in self.result else name

    @property
    def seed(self) -> int:
        return self.result["seed"] if "seed" in self.result else self.config["seed"]

    @property
    def steps(self) -> int:
        """Training steps; 0 for a policy that does not learn."""
        return self.result.get("steps", 0)


def method_of(config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Name a run's method: agent, ranker, item embeddings, and the belief if it is not the default."""
    if "checkpoint" in result:
        return f"{result['agent']} (checkpoint, step {result['step']:,})"
    parts = [config["agent"]["name"]]
    ranker = config["ranker"]["name"]
    if result.get("ranker", "none") != "none":
        parts.append(ranker)
    if result.get("compared_by"):
        parts.append(result["compared_by"])
    if result.get("belief", "gru") != "gru":
        parts.append({"none": "oracle state"}.get(result["belief"], result["belief"]))
    if result.get("test_users", 0) is None:
        parts.append("estimated by the user model" if "test_members" in result else "estimated by FQE")
    return " + ".join(parts)


def name_tasks(records: Sequence[Record]) -> list[str]:
    """Name the task of each record: environment and dataset.

    If tasks of one name differ in settings, the names include these, such as `env.boredom_threshold=3`.
    `tables.by_catalogue` distinguishes different item embeddings.
    """
    plain = [record.env for record in records]
    names = []
    for record, name in zip(records, plain, strict=True):
        alike = [task_of(other) for other, its in zip(records, plain, strict=True) if its == name]
        own = task_of(record)
        differing = sorted(key for key in own if any(other.get(key, own[key]) != own[key] for other in alike))
        names.append(", ".join([name, *(f"{key}={own[key]}" for key in differing)]))
    return names


def task_of(record: Record) -> dict[str, Any]:
    settings = {key: value for key, value in record.task.items() if key not in ("name", "item_embeddings")}
    return _flat({"env": settings, "dataset": record.result.get("dataset_run")})


def name_methods(records: Sequence[Record]) -> list[str]:
    """Name the method of each record: equal for the seeds of one method, different if any other setting differs.

    If runs of one name differ in settings, the names include these, such as `agent.gamma=0`.
    """
    plain = [method_of(record.config, record.result) for record in records]
    names = []
    for record, name in zip(records, plain, strict=True):
        alike = [settings_of(other) for other, its in zip(records, plain, strict=True) if its == name]
        own = settings_of(record)
        differing = sorted(
            key for key in own if any(other.get(key) != own[key] for other in alike) and own[key] is not None
        )
        names.append(", ".join([name, *(f"{key}={own[key]}" for key in differing)]))
    return names


def without_lambdas(record: Record) -> Record:
    """Copy the record of a run with GeMS without the weights lambda_KL and lambda_click, also in its name."""
    ranker = {key: value for key, value in record.config["ranker"].items() if key not in ("lambda_KL", "lambda_click")}
    name = record.config["ranker"]["name"].partition("_KL")[0]
    return replace(record, config={**record.config, "ranker": {**ranker, "name": name}})


def settings_of(record: Record) -> dict[str, Any]:
    """Return the settings of the method by dotted key, without seeds, environment, device and paths."""
    precision = {"matmul_precision": record.config.get("matmul_precision", "highest")}  # older runs had no such setting
    if "checkpoint" in record.result:  # the agent comes from the checkpoint, not from the command
        file = Path(record.result["checkpoint"])
        served = {"temperature": record.result.get("temperature", "the checkpoint's")}
        return {"checkpoint": f"{file.parent.name}/{file.name}", **served, **precision}
    parts = {key: record.config[key] for key in ("agent", "ranker", "belief", "params") if key in record.config}
    if "_target_" in parts.get("ranker", {}):
        parts["ranker"] = {"temperature": 0.0, **parts["ranker"]}  # older runs had no such setting
    if "belief" in parts:
        parts["belief"] = {"shared": False, **parts["belief"]}  # older runs had no such setting
    parts |= precision
    if record.result.get("compared_by"):
        parts["item_embeddings"] = record.config["item_embeddings"]
    if record.result.get("init_from"):
        parts["init_from"] = record.result["init_from"]
    sizes: tuple[str, ...] = (
        "max_steps",
        "random_steps",
        "num_envs",
        "batch_size",
        "capacity",
        "logged_data",
        "pretrain",
    )
    sizes = ("offline", "logged_data", "pretrain") if "dataset" in record.result else sizes
    if record.steps:
        parts["validation"] = record.config.get("validation", {"by": "deterministic"})  # older runs had no such setting
        parts |= {key: record.config[key] for key in sizes if key in record.config}
        parts["pretrain"] = pretraining_of(parts.get("pretrain", {}))
    if not record.result.get("compared_by") and not record.result.get("ranker_run"):
        parts.pop("ranker", None)  # the method does not use it
        parts.pop("params", None)
    # the lambdas belong to the ranker; params only sets them
    return {key: value for key, value in _flat(parts).items() if not key.startswith("params.")}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return settings by dotted key, without names, classes and seeds."""
    if not isinstance(value, Mapping):
        return {path: value}
    found: dict[str, Any] = {}
    for key, entry in value.items():
        if key not in ("_target_", "name", *_SEEDS):
            found |= _flat(entry, f"{path}.{key}" if path else key)
    return found
