"""The share of the slates' variance that the past explains, on policies whose share is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slaterl.data import card
from slaterl.data.dependence import explained_by_history, items_per_slot, most_frequent_slate
from slaterl.data.trajectories import Trajectories
from slaterl.seeds import stream

COUNT, TURNS, SLOTS, ITEMS = 400, 20, 3, 40
ANCHORS = {"random": 1.0, "most_frequent_slate": 2.0, "short_term_oracle": 3.0, "expert": 100.0}


def explained(slates: Tensor, clicks: Tensor) -> float | None:
    return explained_by_history(Trajectories(slates=slates, clicks=clicks))


def users(generator: torch.Generator, count: int = COUNT) -> Tensor:
    """Clicks [N, H + 1, S], each with probability 1/2."""
    return torch.rand(count, TURNS + 1, SLOTS, generator=generator) < 0.5


def answering(chance: float, clicks: Tensor, generator: torch.Generator) -> Tensor:
    """Slates of items 0 to 2, whose slot 0 becomes item 3 after a click on it, with this probability; else after none.

    The variance of slot 0 is 1/4 for each of two items. The click explains (chance - 1/2)^2 of it.
    """
    slates = torch.arange(SLOTS).expand(clicks.shape).clone()
    # item 2 is shown and clicked or not in every turn, so that nothing but the last click on it tells
    follows = torch.rand(len(clicks), TURNS, generator=generator) < chance
    slates[:, 1:, 0] = torch.where(clicks[:, :-1, 2] == follows, 3, 0)
    return slates


@pytest.mark.parametrize("chance", [0.5, 0.7, 0.9, 1.0])
def test_share_of_a_policy_that_answers_the_last_click(chance: float) -> None:
    generator = stream(0, "answering")
    clicks = users(generator)
    found = explained(answering(chance, clicks, generator), clicks)
    assert found == pytest.approx((chance - 0.5) ** 2 / 0.25, abs=0.03)


def test_what_does_not_depend_on_the_past_explains_nothing() -> None:
    generator = stream(0, "random")
    slates = torch.randint(ITEMS, (COUNT, TURNS + 1, SLOTS), generator=generator)
    assert explained(slates, users(generator)) == pytest.approx(0, abs=0.01)


def test_a_plan_depends_on_the_turn() -> None:
    clicks = users(stream(0, "plan"))
    slates = (torch.arange(TURNS + 1) // 5).clamp(max=3)[None, :, None].expand(clicks.shape)
    found = explained(slates, clicks)
    assert found is not None and found > 0.8


def test_an_old_click_counts_too() -> None:
    generator = stream(0, "old")
    clicks = users(generator)
    clicks[:, 1:], clicks[:, :, 1:] = False, False
    slates = torch.where(clicks[:, :1, :1], 1, 2).expand(clicks.shape).clone()
    slates[:, 0] = 0
    found = explained(slates, clicks)
    assert found is not None and found > 0.8


def test_nothing_to_say() -> None:
    generator = stream(0, "few")
    clicks = users(generator)
    assert explained(torch.zeros(clicks.shape), clicks) is None  # one slate
    assert explained(answering(1.0, clicks, generator)[:199], clicks[:199]) is None


def test_items_per_slot() -> None:
    generator = stream(0, "items")
    slates = torch.randint(ITEMS, (COUNT, TURNS, SLOTS), generator=generator)
    assert items_per_slot(slates, ITEMS) == pytest.approx(ITEMS, rel=0.03)
    few = [items_per_slot(slates[at : at + 1], ITEMS) for at in range(COUNT)]  # 20 slates of 40 items: no bias
    assert sum(1 / one for one in few if one is not None) / COUNT == pytest.approx(1 / ITEMS, rel=0.1)
    assert items_per_slot(torch.zeros(2, 2, 2), 5) == 1
    assert items_per_slot(torch.arange(4).view(1, 4, 1), 5) is None


def test_most_frequent_slate() -> None:
    assert most_frequent_slate(torch.tensor([[[7, 1], [7, 2], [3, 2]], [[3, 9], [7, 2], [5, 1]]])) == [7, 2]


def warnings(slates: Tensor, clicks: Tensor, **anchors: float) -> list[str]:
    data = Trajectories(slates, clicks.to(torch.uint8))
    return card.describe(data, [{"name": "mine"}], num_items=ITEMS, anchors=ANCHORS | anchors)["warnings"]


def test_card_says_that_a_policy_is_one_slate() -> None:
    generator = stream(0, "card")
    clicks = users(generator)
    noise = torch.rand(clicks.shape, generator=generator) < 0.3
    drawn = torch.randint(ITEMS, clicks.shape, generator=generator)
    (found,) = warnings(torch.where(noise, drawn, torch.arange(SLOTS)), clicks)
    assert found.startswith("mine is one slate with noise: turn and clicks explain 0.0% of the variance")
    assert any("one slate for all users" in one for one in warnings(torch.zeros(clicks.shape).long(), clicks))
    assert warnings(drawn, clicks) == []  # random slates
    assert not any("one slate" in one for one in warnings(answering(0.9, clicks, generator), clicks))


def test_card_says_that_a_constant_slate_is_better_than_the_data() -> None:
    generator = stream(0, "better")
    clicks = users(generator)
    slates, mean = torch.randint(ITEMS, clicks.shape, generator=generator), clicks[:, 1:].sum() / COUNT
    (found,) = warnings(slates, clicks, most_frequent_slate=2 * mean.item())
    assert "returns" in found and "(200% of the data)" in found
    assert warnings(slates, clicks, most_frequent_slate=0.9 * mean.item()) == []
