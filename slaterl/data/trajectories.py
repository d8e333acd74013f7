"""Trajectories: the one type for logged data, replay buffers and offline datasets, and its file format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slaterl.errors import UserError
from slaterl.runs.files import first_line, whole_file

SCHEMA = 1
FILE = "trajectories.safetensors"  # in the folder of every run that makes trajectories


@dataclass
class Trajectories:
    """N users' episodes as H + 1 frames each; frame t is the slate and the clicks as the user saw it.

    Reset shows frame 0. So o_t = frame t, a_t is the slate of frame t + 1, and r_t the reward of that slate. A belief
    that has read frames 0..t has never seen a_t.

    Sessions of a log have lengths of their own. Then H is the longest, and frames after a session's end are padding
    that no loss, metric or draw may read. Trajectories of a simulator have no `lengths`, and no cost from them.

    Attributes:
        slates: [N, H+1, S] item ids, an integer type.
        clicks: [N, H+1, S] bool or uint8.
        actions: [N, H, A] float in [-1, 1], the policy's inputs to its ranker; None without a ranker.
        policy_id: [N] int16, the behaviour policy of each trajectory.
        hidden: optional columns [N, H, ...] of the simulator's hidden state as each turn begins, by the names of
            Env.hidden_columns. They are never part of an observation.
        reward: [N, H] float, only if the environment's reward is not the number of clicks.
        lengths: [N] int32, the turns of each session, 1..H; None if all have H.
        truncated: [N] bool, whether the log was cut after the last turn, so that values bootstrap there; None if every
            session ended because its user left or its turns were over.
        propensity: [N, H, S] float32, the probability with which a log's policy showed each item; None if unknown.
        group: [N] int32, equal for pieces of one session or user of a log, see groups.py; None if all are independent.
    """

    slates: Tensor
    clicks: Tensor
    actions: Tensor | None = None
    policy_id: Tensor | None = None
    hidden: dict[str, Tensor] = field(default_factory=dict)
    reward: Tensor | None = None
    lengths: Tensor | None = None
    truncated: Tensor | None = None
    propensity: Tensor | None = None
    group: Tensor | None = None

    def __len__(self) -> int:
        return len(self.slates)

    @property
    def rewards(self) -> Tensor:
        """Rewards [N, H] of every turn: `reward`, or without it the number of clicks; 0 after a session's end."""
        rewards = self.clicks[:, 1:].sum(2, dtype=torch.float32) if self.reward is None else self.reward
        return rewards if self.lengths is None else rewards.where(self.mask, 0.0)

    @property
    def mask(self) -> Tensor:
        """Whether a turn [N, H] belongs to its session; False marks padding."""
        count, frames = self.slates.shape[:2]
        if self.lengths is None:
            return torch.ones(count, frames - 1, dtype=torch.bool, device=self.slates.device)
        return torch.arange(frames - 1, device=self.slates.device) < self.lengths.unsqueeze(1)

    @property
    def turns(self) -> int:
        """The number of turns of all sessions, without padding."""
        return len(self) * (self.slates.shape[1] - 1) if self.lengths is None else int(self.lengths.sum())

    @property
    def returns(self) -> Tensor:
        """Sums of the rewards of whole sessions, [N]."""
        return self.rewards.sum(1)

    def shown(self) -> tuple[Tensor, Tensor]:
        """Slates and clicks [M, S] of all M turns, session after session, without frame 0 and padding."""
        slates, clicks = self.slates[:, 1:], self.clicks[:, 1:]
        if self.lengths is None:
            return slates.flatten(0, 1), clicks.flatten(0, 1)
        return slates[self.mask], clicks[self.mask]

    def blanked(self) -> Trajectories:
        """Write zeros into the padding: slates, clicks, actions and rewards after the sessions' ends."""
        if self.lengths is None:
            return self
        columns, mask = self.columns(), self.mask
        frames = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        for name, there in {"slates": frames, "clicks": frames, "actions": mask, "reward": mask}.items():
            if name in columns:
                column = columns[name]
                there = there.view(*there.shape, *(1 for _ in column.shape[2:]))
                columns[name] = column.where(there, column.new_zeros(()))
        return self.from_columns(columns)

    def trimmed(self) -> Trajectories:
        """Drop the padding that no session needs, so that H is the longest session, and lengths that are all H."""
        if self.lengths is None:
            return self
        shortest, longest = (int(length) for length in self.lengths.aminmax())
        surplus = self.slates.shape[1] - 1 - longest
        data = self._resized(lambda column: column[:, : column.shape[1] - surplus])
        return replace(data, lengths=None) if shortest == longest else data

    def with_room(self) -> Trajectories:
        """Add one turn of padding if the log cut sessions: then the state after a session's last frame has a place."""
        if self.truncated is None:
            return self
        horizon = self.slates.shape[1] - 1
        larger = self._resized(lambda column: torch.cat([column, torch.zeros_like(column[:, :1])], dim=1))
        lengths = torch.full_like(self.truncated, horizon, dtype=torch.int32) if self.lengths is None else self.lengths
        return replace(larger, lengths=lengths)

    def _resized(self, change: Callable[[Tensor], Tensor]) -> Trajectories:
        """Change the number of frames and turns in all columns that have them."""
        without = ("policy_id", "lengths", "truncated", "group")
        columns = self.columns().items()
        return self.from_columns({name: c if name in without else change(c) for name, c in columns})

    def columns(self) -> dict[str, Tensor]:
        """Return the present columns by name; hidden columns as `hidden.<name>`."""
        named = {"slates": self.slates, "clicks": self.clicks, "actions": self.actions, "policy_id": self.policy_id}
        named |= {"reward": self.reward, "lengths": self.lengths, "truncated": self.truncated}
        named |= {"propensity": self.propensity, "group": self.group}
        named |= {f"hidden.{name}": column for name, column in self.hidden.items()}
        return {name: column for name, column in named.items() if column is not None}

    @classmethod
    def from_columns(cls, columns: dict[str, Tensor]) -> Trajectories:
        """Make trajectories from columns with the names that `columns` gives."""
        hidden = {name[7:]: column for name, column in columns.items() if name.startswith("hidden.")}
        return cls(**{name: c for name, c in columns.items() if not name.startswith("hidden.")}, hidden=hidden)

    def __getitem__(self, index: slice | Tensor) -> Trajectories:
        """Select trajectories by a slice or an index tensor."""
        return self.from_columns({name: column[index] for name, column in self.columns().items()})

    def compact(self, num_items: int) -> Trajectories:
        """Copy with slates in the smallest integer type that holds num_items, and clicks in one byte."""
        columns = self.columns()
        columns["slates"] = self.slates.to(smallest_int(num_items))
        columns["clicks"] = self.clicks.to(torch.uint8)
        return self.from_columns(columns)

    def to(self, device: torch.device) -> Trajectories:
        """Move all columns to a device."""
        return self.from_columns({name: column.to(device) for name, column in self.columns().items()})


def smallest_int(num_items: int) -> torch.dtype:
    """Return the smallest torch integer type that holds the ids 0..num_items - 1."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if num_items - 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64


def save(path: Path, data: Trajectories, metadata: dict[str, Any]) -> None:
    """Write a safetensors file with a JSON header, whole or not at all.

    Args:
        metadata: plain values (environment, behaviours, seeds, versions). Schema, sizes and checksum are added.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    columns = {name: column.cpu().contiguous() for name, column in data.columns().items()}
    header = dict(metadata, schema=SCHEMA, num_trajectories=len(data))
    header["checksum"] = _checksum(header, columns)
    with whole_file(path) as partial:
        save_file(columns, partial, metadata={"slaterl": json.dumps(header)})


def load(path: Path, *, num_items: int | None = None) -> tuple[Trajectories, dict[str, Any]]:
    """Read and verify a file that `save` wrote. Returns the trajectories and their metadata.

    Args:
        num_items: if given, item ids must be below it.

    Raises:
        UserError: the file is missing, truncated, altered, of another schema, or holds item ids out of range.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("slaterl")
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: truncated or not a trajectory file ({first_line(error)})") from error
    try:
        metadata = dict(json.loads(header or ""))
        schema, checksum = metadata["schema"], metadata.pop("checksum")
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a trajectory file of slaterl (its header has no metadata)") from error
    if schema != SCHEMA:
        raise UserError(f"{path}: schema {schema}, but this version reads schema {SCHEMA}; make it again")
    if _checksum(metadata, columns) != checksum:
        raise UserError(f"{path}: its content does not match its checksum; the file was altered or damaged")
    metadata["checksum"] = checksum
    data = Trajectories.from_columns(columns)
    if num_items is not None:
        check_ids(data.slates, num_items, where=str(path))
    return data, metadata


def check_ids(slates: Tensor, num_items: int, where: str) -> None:
    """Raise UserError unless all item ids lie in 0..num_items - 1."""
    if slates.numel() == 0:
        raise UserError(f"{where}: holds no trajectories")
    low, high = int(slates.min()), int(slates.max())
    if low < 0 or high >= num_items:
        raise UserError(f"{where}: slates hold item ids from {low} to {high}, expected 0..{num_items - 1}")


def _checksum(header: dict[str, Any], columns: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(columns):
        column = columns[name]
        digest.update(f"{name} {column.dtype} {list(column.shape)}".encode())
        digest.update(column.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
