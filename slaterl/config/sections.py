"""The configuration as classes: the settings of each section, with the types that say which values are allowed.

Values live in conf/. A node with a `_target_` has no class here, because its settings are the arguments of the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from slaterl.bounds import (
    Count,
    Discount,
    File,
    Folder,
    Fraction,
    Holdout,
    NonNegative,
    Positive,
    Several,
    Share,
    Text,
    Whole,
)
from slaterl.config.dataset_sections import CollectedDataset, DatasetFile, LogDataset, MixedDataset
from slaterl.config.section import NamedPart, Part, Section, Strings

Estimator = Literal["simulator", "fqe", "ips", "user_model"]
Validator = Literal["simulator", "fqe", "user_model", "none"]
Labels = Literal["auto", "recorded", "encoded"]
Device = Annotated[str, Field(description="auto, cpu or cuda")]
Runs = Annotated[str | Strings | None, Field(description="folders, globs, or the folder of a sweep")]
Methods = Annotated[str | Strings | None, Field(description="the name of a method in the report, or a list of names")]
MinariId = Annotated[str | None, Field(description="the id of a Minari dataset")]


@dataclass
class NoRanker(Section):
    name: Text


@dataclass
class LoggedData(Section):
    source: Literal["epsilon_oracle", "dataset"]
    trajectories: Several
    epsilon: Fraction
    num_envs: Count
    seed: Whole


@dataclass
class Pretrain(Section):
    epochs: Count
    lr: Positive
    batch_size: Count
    holdout: Holdout
    box_trajectories: Count
    patience: Count | None
    min_delta: NonNegative


@dataclass
class Params(Section):
    lambda_KL: NonNegative  # noqa: N815 (the paper's name)
    lambda_click: NonNegative


@dataclass
class Collect(Section):
    trajectories: Several
    medium_step: Count | None


@dataclass
class Validation(Section):
    by: Literal["deterministic", "sampled"]


@dataclass
class Offline(Section):
    validation: Validator
    actions: Labels
    max_steps: Count
    batch_size: Count
    log_every_n_steps: Count
    val_every_n_steps: Count
    val_users: Several
    test_users: Several
    save_every_n_steps: Count


@dataclass
class FQE(Section):
    discount: Discount
    updates: Count
    batch_size: Count
    members: Several
    hidden: Count
    lr: Positive
    tau: Share


@dataclass
class IPS(Section):
    draws: Count
    resamples: Count


@dataclass
class UserTraining(Section):
    seed: Whole
    members: Several
    lr: Positive
    batch_size: Count
    max_steps: Count
    val_every_n_steps: Count
    patience: Count
    holdout: Holdout
    covered: Count


@dataclass
class Benchmark(Section):
    repeats: Count


@dataclass
class Report(Section):
    runs: Runs
    against: Methods
    spread: Literal["interval", "deviation"]
    users: Several
    keep: Folder | None


@dataclass
class Export(Section):
    minari: MinariId
    onnx: bool


@dataclass
class Recommend(Section):
    format: Literal["parquet", "csv"]
    form: Literal["wide", "long"]
    sample: bool


@dataclass
class Status(Section):
    sweep: Folder | None


@dataclass
class Paths(Section):
    root: Folder
    kept: Folder | None


@dataclass
class OnlineProtocol(Section):
    """How an agent is trained, validated and tested online. All of it determines a run."""

    max_steps: Count
    random_steps: Whole
    num_envs: Count
    batch_size: Count
    capacity: Count
    log_every_n_steps: Count
    val_every_n_steps: Count
    val_users: Several
    test_users: Several
    save_every_n_steps: Count


@dataclass
class Configuration(OnlineProtocol):
    """Everything that config.yaml and its groups define."""

    seed: Whole
    ranker_seed: Whole
    device: Device
    threads: Count | Literal["auto"]
    matmul_precision: Literal["highest", "medium"]
    constant_slate_users: Count | None
    init_from: File | None
    evaluation: Estimator
    checkpoint: File | None
    force: bool

    logged_data: LoggedData
    pretrain: Pretrain
    params: Params
    collect: Collect
    validation: Validation
    offline: Offline
    fqe: FQE
    ips: IPS
    user_training: UserTraining
    benchmark: Benchmark
    report: Report
    export: Export
    recommend: Recommend
    status: Status
    paths: Paths

    click_model: Part
    env: NamedPart
    belief: NamedPart
    item_embeddings: NamedPart
    ranker: NoRanker | NamedPart
    agent: NamedPart
    dataset: DatasetFile | LogDataset | CollectedDataset | MixedDataset
    user_model: NamedPart
    stage: NamedPart
    logger: Any = None  # checked by slaterl.training.logger_settings
