"""The click log against lists: random clicks of a batch of users, who must not touch each other."""

from __future__ import annotations

import pytest
import torch

from slaterl.envs.click_log import ClickLog, count_topics
from slaterl.seeds import stream

USERS, SLOTS, TOPICS, TURNS = 6, 4, 3, 25


class Lists:
    """The log of one user: topics, oldest first, and the turns of the newest of them."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.topics: list[int] = []
        self.turns: list[int] = []

    def append(self, topics: list[int], turn: int | None, window: int) -> None:
        self.topics = [*self.topics, *topics][-self.memory :]
        if turn is None:
            return
        self.turns = [*self.turns, *[turn] * len(topics)][-self.memory :]
        while self.turns and self.turns[0] < turn - window:
            self.turns.pop(0)
            self.topics.pop(0)


@pytest.mark.parametrize(("memory", "window"), [(10, 5), (3, 2), (1, 1), (40, 30)])
@pytest.mark.parametrize("often", [0.1, 0.5, 1.0])
def test_counts_are_those_of_lists(memory: int, window: int, often: float) -> None:
    generator = stream(0, "clicks")
    log = ClickLog.empty(USERS, memory, TOPICS, torch.device("cpu"))
    lists = [Lists(memory) for _ in range(USERS)]
    sizes = set()
    for turn in range(TURNS):
        clicks = torch.rand(USERS, SLOTS, generator=generator) < often
        topics = torch.randint(TOPICS, (USERS, SLOTS), generator=generator)
        if turn == 0:
            log.start(clicks, topics)
        else:
            log.append(clicks, topics, turn, window)
        for user, own in enumerate(lists):
            own.append(topics[user, clicks[user]].tolist(), turn or None, window)
            sizes.add(len(own.topics))
            assert log.counts()[user].tolist() == [own.topics.count(topic) for topic in range(TOPICS)]
            newest = log.topic[user, memory - len(own.topics) :]
            assert newest.tolist() == own.topics
    assert len(sizes) > 1 or memory <= SLOTS


def test_weights_choose_what_counts() -> None:
    topics = torch.tensor([[0, 1, 1], [2, 2, 2]])
    assert count_topics(topics, torch.tensor([[1, 1, 0], [0, 1, 1]]), 3).tolist() == [[1, 1, 0], [0, 0, 2]]
