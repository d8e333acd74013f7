"""The click log: the newest clicks of each user, by topic and turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def count_topics(topics: Tensor, weights: Tensor, num_topics: int) -> Tensor:
    """Count how often each topic occurs in each row. [..., M] -> [..., K]."""
    counts = torch.zeros(*topics.shape[:-1], num_topics, dtype=torch.int64, device=topics.device)
    return counts.scatter_add_(-1, topics, weights.long())


@dataclass
class ClickLog:
    """The M newest clicks of B users, the newest last.

    The turn stamped on a click gives its age. As in the published simulator, whose numbers depend on it, the clicks
    of reset carry no stamp. They sit at the old end of the log and never expire by their own age.
    """

    num_topics: int
    topic: Tensor  # [B, M] topics of the clicked items
    turn: Tensor  # [B, M] turns of those clicks
    logged: Tensor  # [B] how many of the newest entries count
    stamped: Tensor  # [B] how many of them carry a turn

    @classmethod
    def empty(cls, num_users: int, memory: int, num_topics: int, device: torch.device) -> ClickLog:
        """Make the log of B users who have not clicked yet; it holds `memory` entries for each."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        users = num_users
        return cls(num_topics, zeros(users, memory), zeros(users, memory), zeros(users), zeros(users))

    def counts(self) -> Tensor:
        """Count the clicks on each topic, [B, K]."""
        return count_topics(self.topic, self._newest(self.logged), self.num_topics)

    def start(self, clicks: Tensor, topics: Tensor) -> None:
        """Enter the clicks of reset [B, S], which carry no turn."""
        self._push(clicks, topics, turn=0)
        self.logged = clicks.sum(1).clamp(max=self.topic.shape[1])

    def append(self, clicks: Tensor, topics: Tensor, turn: int, window: int) -> None:
        """Enter the clicks [B, S] of a turn, then forget those that are more than `window` turns old.

        An expiry removes the oldest remaining entry, stamped or not.
        """
        self._push(clicks, topics, turn)
        memory, count = self.topic.shape[1], clicks.sum(1)
        stamped = (self.stamped + count).clamp_(max=memory)
        too_old = self.turn < turn - window
        expired = (too_old & self._newest(stamped)).sum(1)
        self.stamped = stamped - expired
        self.logged = (self.logged + count).clamp_(max=memory) - expired

    def _newest(self, count: Tensor) -> Tensor:
        """Mask [B, M] of the `count` [B] newest entries."""
        memory = self.topic.shape[1]
        return torch.arange(memory, device=count.device) >= (memory - count).unsqueeze(1)

    def _push(self, clicks: Tensor, topics: Tensor, turn: int) -> None:
        """Push the clicked items' topics, in rank order, at the new end of the log; the oldest fall out."""
        memory, slots = self.topic.shape[1], clicks.shape[1]
        order = clicks.cumsum(1)  # 1 for the first click of a slate, 2 for the second, ...
        count = order[:, -1:]
        # Both sources land in M + S places; the last M are the new log. Slot M + S takes the items without a click.
        old_places = torch.arange(slots, slots + memory, device=clicks.device) - count
        new_places = torch.where(clicks, memory + slots - count + order - 1, memory + slots)
        places = torch.cat([old_places, new_places], dim=1)
        # one scatter for both columns: an entry is turn * K + topic
        both = torch.cat([self.turn * self.num_topics + self.topic, topics + turn * self.num_topics], dim=1)
        room = both.new_zeros(len(both), memory + slots + 1)
        packed = room.scatter_(1, places, both)[:, slots : slots + memory]
        self.turn, self.topic = packed // self.num_topics, packed % self.num_topics
