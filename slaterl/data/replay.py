"""The replay buffer: the newest trajectories, in columns allocated once on the training device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slaterl.bounds import Count, checked
from slaterl.data.trajectories import Trajectories


class ReplayBuffer:
    """A ring of `capacity` trajectories."""

    def __init__(self, capacity: Count) -> None:
        self.capacity = checked("capacity", capacity, Count)
        self.size = self.position = 0
        self.columns: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self.size

    def push(self, new: Trajectories) -> None:
        """Add trajectories; the newest overwrite the oldest."""
        new = new[-self.capacity :]
        if not self.columns:
            for name, column in new.columns().items():
                self.columns[name] = column.new_zeros(self.capacity, *column.shape[1:])
        places = torch.arange(self.position, self.position + len(new), device=new.slates.device) % self.capacity
        for name, column in new.columns().items():
            self.columns[name][places] = column
        self.position = (self.position + len(new)) % self.capacity
        self.size = min(self.size + len(new), self.capacity)

    def sample(self, count: int, generator: torch.Generator) -> Trajectories:
        """Draw `count` different trajectories uniformly."""
        index = torch.randperm(self.size, generator=generator, device=generator.device)[:count]
        return self.at(index)

    def at(self, places: slice | Tensor) -> Trajectories:
        """Return the trajectories at these places of the ring."""
        return Trajectories.from_columns({name: column[places] for name, column in self.columns.items()})

    def trajectories(self) -> Trajectories:
        """Return all stored trajectories, oldest first."""
        if self.size == 0:
            raise IndexError("the replay buffer is empty")
        device = self.columns["slates"].device
        oldest = (torch.arange(self.size, device=device) + self.position - self.size) % self.capacity
        return self.at(oldest)

    def state_dict(self) -> dict[str, Any]:
        used = {name: column[: self.size].clone() for name, column in self.columns.items()}
        return {"columns": used, "position": self.position, "size": self.size}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.size, self.position = state["size"], state["position"]
        self.columns = {}
        for name, column in state["columns"].items():
            self.columns[name] = column.new_zeros(self.capacity, *column.shape[1:], device=device)
            self.columns[name][: self.size] = column
