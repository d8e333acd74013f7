"""Batches of offline training: whole trajectories of a dataset, drawn uniformly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import torch

from slaterl.agents.base import Agent
from slaterl.data.trajectories import Trajectories


class OfflineData(L.LightningDataModule):
    """Yield a batch for each update until `max_steps`. A step is an update.

    The agent prepares the data when training begins. A resumed run takes what its checkpoint says of that: labels that
    are computed again can differ on another machine, and would not fit the action box in the checkpoint.

    Args:
        data: the trajectories, on the agent's device; `agent.prepare` may select some of them.
        agent: the agent to train.
        max_steps: number of updates.
        batch_size: number of trajectories in a batch; a smaller dataset gives all of its trajectories.
        batches: random stream for drawing batches.
    """

    def __init__(
        self, data: Trajectories, agent: Agent, *, max_steps: int, batch_size: int, batches: torch.Generator
    ) -> None:
        super().__init__()
        self.agent, self.recorded = agent, data
        self.prepared: Trajectories | None = None
        self.found = agent.preparation()  # older checkpoints have none; their ranker starts with the same box
        self.max_steps, self.batch_size, self.batches = max_steps, batch_size, batches
        self.measures: Mapping[str, float] = {}

    @property
    def counters(self) -> Mapping[str, int]:
        return {"updates": self.agent.step}

    @property
    def data(self) -> Trajectories:
        """The prepared trajectories."""
        if self.prepared is None:
            self.prepared = self.agent.prepare(self.recorded)
        return self.prepared

    def train_dataloader(self) -> OfflineData:
        return self

    def __len__(self) -> int:
        return self.max_steps - self.agent.step

    def __iter__(self) -> Iterator[Trajectories]:
        while self.agent.step < self.max_steps:
            places = torch.randperm(len(self.data), generator=self.batches, device=self.batches.device)
            yield self.data[places[: self.batch_size]]

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches.get_state(), "prepared": self.agent.preparation()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state after the agent has its own."""
        self.prepared = self.agent.prepare_again(self.recorded, state.get("prepared", self.found))
        self.batches.set_state(state["batches"])
