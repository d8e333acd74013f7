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

Policy = Literal["random", "medium", "expert", "replay"]
Estimator = Literal["simulator", "fqe"]
Validator = Literal["simulator", "fqe", "none"]
Labels = Literal["auto", "recorded", "encoded"]
DatasetPath = Annotated[str, Field(description="a path, or minari:<dataset id>")]
Column = Annotated[str | None, Field(description="the name of a column")]
Gap = Annotated[str | None, Field(pattern=r"^\d+(\.\d+)? *[smhd]$", description="a time such as 45s, 30m, 12h or 1d")]
Separator = Annotated[str | None, Field(min_length=1, max_length=1, description="one character")]
AgentFile = Annotated[str, Field(description="one of the files in conf/agent")]
RankerFile = Annotated[str, Field(description="one of the files in conf/ranker")]
Device = Annotated[str, Field(description="auto, cpu or cuda")]
Strings = Annotated[list[str], Field(min_length=1)]
Columns = Annotated[str | Strings | None, Field(description="the name of a column, or a list of names")]
Runs = Annotated[str | Strings | None, Field(description="folders, globs, or the folder of a sweep")]
Methods = Annotated[str | Strings | None, Field(description="the name of a method in the report, or a list of names")]
MinariId = Annotated[str | None, Field(description="the id of a Minari dataset")]


class Section:
    """A node whose settings are the fields of its class."""


@dataclass
class Part(Section):
    """A node whose settings are the arguments of its `_target_`."""


@dataclass
class NamedPart(Part):
    """A part with a name, which appears in the names of runs and in messages."""

    name: Text


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
class OnlineRun(Section):
    """The online run that a dataset takes its policies from."""

    agent: AgentFile
    ranker: RankerFile
    seed: Whole
    medium_step: Count | None
    train: bool


@dataclass
class Behaviour(Section):
    """One policy that shows the slates of a dataset."""

    policy: Policy
    checkpoint: File | None
    sample: bool
    noise: Fraction
    epsilon: Fraction


@dataclass
class WeightedBehaviour(Behaviour):
    share: Positive


@dataclass
class DatasetFile(Section):
    name: Text
    path: DatasetPath


@dataclass
class LogColumns(Section):
    """Names of a log's columns; None finds the usual ones."""

    session: Columns
    turn: Column
    item: Columns
    position: Column
    click: Columns
    propensity: Columns
    slate: Column
    clicks: Column
    clicked: Column


@dataclass
class LogDataset(Section):
    """A log of what was shown and clicked, see conf/dataset/log.yaml."""

    name: Text
    path: File
    separator: Separator
    columns: LogColumns
    session_gap: Gap
    max_turns: Count | None
    ragged: Literal["refuse", "drop"]
    num_items: Count | None
    slate_size: Count | None
    episode_length: Count | None


@dataclass
class Dataset(Section):
    name: Text
    trajectories: Count
    num_envs: Count
    seed: Whole
    hidden: bool
    actions: bool | Literal["auto"]
    run: OnlineRun


@dataclass
class CollectedDataset(Dataset):
    behaviour: Behaviour


@dataclass
class MixedDataset(Dataset):
    behaviours: dict[str, WeightedBehaviour]


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
    stage: NamedPart
    logger: Any = None  # checked by slaterl.training.logger_settings
