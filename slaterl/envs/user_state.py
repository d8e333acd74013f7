"""The hidden state of the users of TopicRec."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from slaterl.envs.click_log import ClickLog


@dataclass
class UserState:
    """The hidden state of B users."""

    turn: int
    embedding: Tensor  # [B, D] the user's own taste, moved by clicks, never by boredom
    timer: Tensor  # [B, K] int64, turns that a topic stays bored; 0 where it is not
    short_term_topic: Tensor  # [B, 1]
    log: ClickLog
    upcoming: tuple[Tensor, Tensor, Tensor] | None = None  # timers, bored topics and taste of the next turn, once known

    @property
    def bored(self) -> Tensor:
        """[B, K] bool."""
        return self.timer > 0
