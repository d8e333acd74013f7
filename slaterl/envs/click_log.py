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
    entries: Tensor  # [B, M] of each click turn * K + topic, in one number to move it at once
    logged: Tensor  # [B, 1] how many of the newest entries count
    stamped: Tensor  # [B, 1] how many of them carry a turn
    rank: Tensor  # [M] of each entry from the newest, M..1

    @classmethod
    def empty(cls, num_users: int, memory: int, num_topics: int, device: torch.device) -> ClickLog:
        """Make the log of B users who have not clicked yet; it holds `memory` entries for each."""

        def zeros(width: int) -> Tensor:
            return torch.zeros(num_users, width, dtype=torch.int64, device=device)

        return cls(num_topics, zeros(memory), zeros(1), zeros(1), torch.arange(memory, 0, -1, device=device))

    @property
    def topic(self) -> Tensor:
        """The topics of the clicked items, [B, M]."""
        return self.entries % self.num_topics

    def counts(self) -> Tensor:
        """Count the clicks on each topic, [B, K]."""
        return count_topics(self.topic, self.rank <= self.logged, self.num_topics)

    def start(self, clicks: Tensor, topics: Tensor) -> None:
        """Enter the clicks of reset [B, S], which carry no turn."""
        count = self._push(clicks, topics)
        self.logged = count.clamp(max=len(self.rank))

    def append(self, clicks: Tensor, topics: Tensor, turn: int, window: int) -> None:
        """Enter the clicks [B, S] of a turn, then forget those that are more than `window` turns old.

        An expiry removes the oldest remaining entry, stamped or not.
        """
        count, memory = self._push(clicks, topics + turn * self.num_topics), len(self.rank)
        stamped = (self.stamped + count).clamp_(max=memory)
        too_old = self.entries < (turn - window) * self.num_topics
        expired = (too_old & (self.rank <= stamped)).sum(1, keepdim=True)
        self.stamped = stamped - expired
        self.logged = (self.logged + count).clamp_(max=memory).sub_(expired)

    def _push(self, clicks: Tensor, entries: Tensor) -> Tensor:
        """Push the entries [B, S] of clicked items, in rank order, at the new end. Returns their number [B, 1]."""
        memory, slots = len(self.rank), clicks.shape[1]
        order = clicks.cumsum(1)  # 1 for the first click of a slate, 2 for the second, ...
        count = order[:, -1:]
        # Both sources land in S + M places; the last M are the new log. Items without a click go to place 0.
        old_places = (slots + memory - self.rank) - count
        new_places = (order - count + (slots + memory - 1)) * clicks
        places = torch.cat([old_places, new_places], dim=1)
        both = torch.cat([self.entries, entries], dim=1)
        self.entries = both.new_empty(both.shape).scatter_(1, places, both)[:, slots:]
        return count
