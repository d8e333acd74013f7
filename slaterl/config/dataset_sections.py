"""The sections of `dataset`, one for each kind of dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from slaterl.bounds import (
    Count,
    File,
    Fraction,
    Positive,
    Text,
    Whole,
)
from slaterl.config.section import Section, Strings

Policy = Literal["random", "medium", "expert", "replay"]
DatasetPath = Annotated[str, Field(description="a path, or minari:<dataset id>")]
Column = Annotated[str | None, Field(description="the name of a column")]
Gap = Annotated[str | None, Field(pattern=r"^\d+(\.\d+)? *[smhd]$", description="a time such as 45s, 30m, 12h or 1d")]
Separator = Annotated[str | None, Field(min_length=1, max_length=1, description="one character")]
AgentFile = Annotated[str, Field(description="one of the files in conf/agent")]
RankerFile = Annotated[str, Field(description="one of the files in conf/ranker")]
Columns = Annotated[str | Strings | None, Field(description="the name of a column, or a list of names")]


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
