"""The dataset card: its numbers, checked by hand and with NumPy, and its warnings."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

from slaterl.data import card
from slaterl.data.trajectories import Trajectories
from slaterl.seeds import stream

ANCHORS = {"random": 1.0, "constant_slate": 2.0, "most_frequent_slate": 2.5, "short_term_oracle": 3.0, "expert": 6.0}
UNKNOWN: dict[str, float | None] = dict.fromkeys(ANCHORS)
BEHAVIOURS: list[dict[str, Any]] = [
    {"name": "good", "policy": "expert", "noise": 0.0, "epsilon": 0.0, "checkpoint": "0123abcd", "trajectories": 2},
    {"name": "bad", "policy": "medium", "noise": 0.3, "epsilon": 0.0, "checkpoint": None, "trajectories": 1},
]


def tiny() -> Trajectories:
    """3 trajectories of 2 turns, slates of 2 out of 5 items; frame 0 shows an item that no other frame shows."""
    slates = [[[4, 4], [0, 1], [0, 1]], [[4, 4], [1, 0], [0, 0]], [[4, 4], [0, 2], [0, 2]]]
    clicks = [[[1, 1], [1, 1], [1, 0]], [[1, 1], [0, 1], [1, 0]], [[1, 1], [0, 0], [0, 0]]]
    ids = torch.tensor([0, 0, 1], dtype=torch.int16)
    return Trajectories(torch.tensor(slates), torch.tensor(clicks, dtype=torch.uint8), policy_id=ids)


def made(count: int = 300, turns: int = 7, slots: int = 4, items: int = 250, behaviours: int = 3) -> Trajectories:
    """Shuffled trajectories of behaviours with different concentration and click rates."""
    generator = stream(0, "card")
    ids = torch.randint(behaviours, (count,), generator=generator)
    spread = torch.rand(count, turns + 1, slots, generator=generator) ** (1 + ids[:, None, None])
    rates = 0.8 ** torch.arange(slots) / (1 + ids[:, None, None])
    return Trajectories(
        slates=(spread * items).long(),
        clicks=torch.rand(count, turns + 1, slots, generator=generator) < rates,
        policy_id=ids.short(),
    ).compact(items)


def named(count: int) -> list[dict[str, Any]]:
    return [{"name": f"behaviour {i}"} for i in range(count)]


def constant(slate: list[int], count: int = 4, turns: int = 5, rate: float = 0.5) -> Trajectories:
    """Show every user the same slate."""
    clicks = torch.rand(count, turns + 1, len(slate), generator=stream(1, "constant")) < rate
    return Trajectories(torch.tensor(slate).expand(count, turns + 1, len(slate)), clicks)


def test_counted_by_hand() -> None:
    found = card.describe(tiny(), BEHAVIOURS, num_items=5, anchors=ANCHORS)
    assert (found["trajectories"], found["turns"], found["slate_size"], found["num_items"]) == (3, 2, 2, 5)
    # returns 3, 2, 0
    assert found["histogram_edges"] == [-0.5, 0.5, 1.5, 2.5, 3.5]
    assert found["returns"].pop("histogram") == [1, 0, 1, 1]
    expected = {"mean": 5 / 3, "std": (7 / 3) ** 0.5, "min": 0, "q25": 1, "median": 2, "q75": 2.5, "max": 3}
    assert found["returns"] == pytest.approx(expected)
    # 12 impressions: 7 of item 0, 3 of item 1, 2 of item 2
    items = found["items"]
    assert (items["shown"], items["half_of_impressions"]) == (3, 1)
    assert items["coverage"] == pytest.approx(0.6)
    assert items["top_1_percent"] == pytest.approx(7 / 12)  # at least one item
    assert items["top_10"] == pytest.approx(1)  # of fewer than 10
    assert items["gini"] == pytest.approx(2 * (3 * 2 + 4 * 3 + 5 * 7) / (5 * 12) - 6 / 5)
    assert items["most_shown"] == [1, 2, 3, 4, 5]
    assert items["share"] == pytest.approx([7 / 12, 10 / 12, 1, 1, 1])
    # 01 01 10 00 02 02: 10 is another slate than 01
    # slot 0 shows item 0 five times, slot 1 shows each item twice: of 30 pairs, 20 and 6 are equal
    slates = {"count": 4, "distinct": 4 / 6, "with_repeats": 1 / 6, "items_per_slot": 60 / 26}
    assert found["slates"] == pytest.approx(slates | {"explained_by_history": None})
    assert found["click_rate_by_rank"] == pytest.approx([3 / 6, 2 / 6])
    assert found["clicks_per_turn"] == pytest.approx([1, 2 / 3])
    assert found["normalised_score"] == pytest.approx(100 * (5 / 3 - 1) / 5)
    scores = {name: anchor["normalised_score"] for name, anchor in found["anchors"].items()}
    constant = {"constant_slate": 20, "most_frequent_slate": 30}
    assert scores == pytest.approx({"random": 0, **constant, "short_term_oracle": 40, "expert": 100})

    good, bad = found["behaviours"]
    assert (good["name"], good["checkpoint"], bad["noise"]) == ("good", "0123abcd", 0.3)  # as described
    assert (good["trajectories"], bad["trajectories"]) == (2, 1)
    assert (good["returns"]["mean"], bad["returns"]["mean"], bad["returns"]["std"]) == (2.5, 0, 0)
    assert (good["returns"]["histogram"], bad["returns"]["histogram"]) == ([0, 0, 1, 1], [1, 0, 0, 0])
    assert (good["items"]["shown"], bad["items"]["shown"]) == (2, 2)
    assert (good["normalised_score"], bad["normalised_score"]) == pytest.approx((30, -20))


def test_derived_with_numpy() -> None:
    items, count = 250, 3
    data = made(items=items, behaviours=count)
    found = card.describe(data, named(count), num_items=items, anchors=UNKNOWN)
    assert [part["name"] for part in found["behaviours"]] == [f"behaviour {i}" for i in range(count)]
    whole = np.ones(len(data), dtype=bool)
    chosen = [whole, *(data.policy_id.numpy() == i for i in range(count))]  # type: ignore[union-attr]
    edges = found["histogram_edges"]
    for rows, part in zip(chosen, [found, *found["behaviours"]], strict=True):
        slates, clicks = data.slates.numpy()[rows, 1:], data.clicks.numpy()[rows, 1:].astype(float)
        returns = clicks.sum((1, 2))
        assert part["trajectories"] == rows.sum()
        assert part["returns"]["mean"] == pytest.approx(returns.mean())
        assert part["returns"]["std"] == pytest.approx(returns.std(ddof=1))
        quartiles = [part["returns"][name] for name in ("min", "q25", "median", "q75", "max")]
        assert quartiles == pytest.approx(np.percentile(returns, [0, 25, 50, 75, 100]))
        inside = [int(((returns > low) & (returns < high)).sum()) for low, high in itertools.pairwise(edges)]
        assert part["returns"]["histogram"] == inside
        assert sum(inside) == len(returns)

        counts = np.array([(slates == item).sum() for item in range(items)], dtype=float)
        falling = np.sort(counts)[::-1] / counts.sum()
        assert part["items"]["shown"] == (counts > 0).sum()
        assert part["items"]["coverage"] == pytest.approx((counts > 0).mean())
        half = part["items"]["half_of_impressions"]
        assert falling[:half].sum() >= 0.5 > falling[: half - 1].sum()
        differences = np.abs(counts[:, None] - counts[None, :]).mean()
        assert part["items"]["gini"] == pytest.approx(differences / (2 * counts.mean()))
        assert part["items"]["top_1_percent"] == pytest.approx(falling[:2].sum())
        assert part["items"]["top_10"] == pytest.approx(falling[:10].sum())
        assert part["items"]["share"] == pytest.approx([falling[:k].sum() for k in part["items"]["most_shown"]])

        shown = [tuple(slate) for slate in slates.reshape(-1, slates.shape[2]).tolist()]
        assert part["slates"]["count"] == len(set(shown))
        assert part["slates"]["distinct"] == pytest.approx(len(set(shown)) / len(shown))
        repeats = np.mean([len(set(slate)) < len(slate) for slate in shown])
        assert part["slates"]["with_repeats"] == pytest.approx(repeats)
        assert part["click_rate_by_rank"] == pytest.approx(clicks.mean((0, 1)))
        assert part["clicks_per_turn"] == pytest.approx(clicks.sum(2).mean(0))


def test_few_slates_shown_again_and_again_are_few() -> None:
    slates = torch.randint(50, (30, 4), generator=stream(2, "slates"))
    chosen = torch.randint(30, (400, 6), generator=stream(3, "slates"))
    data = Trajectories(slates[chosen], torch.zeros(400, 6, 4, dtype=torch.bool))
    found = card.describe(data, named(1), num_items=50, anchors=UNKNOWN)
    assert found["slates"]["distinct"] == pytest.approx(30 / (400 * 5))


def test_items_shown_equally_often_are_not_concentrated() -> None:
    items = card.describe(constant([0, 1, 2, 3]), named(1), num_items=4, anchors=UNKNOWN)["items"]
    assert items["gini"] == pytest.approx(0)
    assert items["half_of_impressions"] == 2


def test_the_types_of_the_columns_do_not_matter() -> None:
    data = made(items=200)
    wide = Trajectories(data.slates.long(), data.clicks.bool(), policy_id=data.policy_id)
    narrow = card.describe(data, named(3), num_items=200, anchors=ANCHORS)
    assert data.slates.dtype == torch.uint8
    assert card.describe(wide, named(3), num_items=200, anchors=ANCHORS) == narrow


def test_plain_values_even_for_one_trajectory() -> None:
    for data in (tiny(), tiny()[:1], constant([1, 2, 3], rate=0)):
        found = card.describe(data, BEHAVIOURS[:2], num_items=5, anchors=UNKNOWN)
        assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(("turns", "width"), [(5, 1), (39, 1), (40, 2), (79, 2), (80, 3)])
def test_histogram_has_whole_bins_and_not_too_many(turns: int, width: int) -> None:
    clicks = torch.ones(turns + 1, turns + 1).tril()[:, :, None]  # one item a slate
    data = Trajectories(torch.zeros(clicks.shape, dtype=torch.int64), clicks.bool())
    assert data.returns.tolist() == list(range(turns + 1))
    found = card.describe(data, named(1), num_items=3, anchors=UNKNOWN)
    counts = found["returns"]["histogram"]
    assert set(np.diff(found["histogram_edges"])) == {width}
    assert len(counts) <= 40
    assert counts[:-1] == [width] * (len(counts) - 1)
    assert sum(counts) == turns + 1


def warned(data: Trajectories, behaviours: int = 3, **anchors: float | None) -> list[str]:
    return card.describe(data, named(behaviours), num_items=250, anchors=ANCHORS | anchors)["warnings"]


def test_the_searched_slate_is_an_anchor_only_if_it_was_searched() -> None:
    found = card.describe(made(), named(3), num_items=250, anchors=ANCHORS)
    assert "best_constant_slate" not in found["anchors"]
    found = card.describe(made(), named(3), num_items=250, anchors=ANCHORS | {"best_constant_slate": 5.6})
    assert found["anchors"]["best_constant_slate"] == {"return": 5.6, "normalised_score": pytest.approx(92.0)}
    (warning,) = found["warnings"]
    assert "too easy" in warning and "5.6" in warning and "score 92" in warning


def test_no_warning_without_a_reason() -> None:
    assert warned(made()) == []
    assert warned(made(), constant_slate=5.4) == []  # nine tenths of the expert's return, but not of its score


@pytest.mark.parametrize(
    ("anchors", "words"),
    [
        ({"constant_slate": 5.5}, ["too easy", "5.5", "6.0", "score 90"]),
        ({"random": 1e3, "expert": 2e3}, ["below the return of random slates", "1000.0"]),
        ({"short_term_oracle": 6.5}, ["short-term oracle", "6.5", "6.0"]),
        ({"expert": None}, ["No normalised scores", "return of the expert is unknown"]),
        ({"random": None}, ["No normalised scores", "return of random slates is unknown"]),
        ({"expert": 1.0}, ["No normalised scores", "expert has a mean return of 1.0"]),
    ],
)
def test_warns_of_anchors(anchors: dict[str, float | None], words: list[str]) -> None:
    (warning,) = warned(made(), **anchors)
    for word in words:
        assert word in warning


@pytest.mark.parametrize("expert", [None, 1.0, 0.5])
def test_no_score_where_there_is_none(expert: float | None) -> None:
    found = card.describe(made(), named(3), num_items=250, anchors=ANCHORS | {"expert": expert})
    parts = [found, *found["behaviours"], *found["anchors"].values()]
    assert [part["normalised_score"] for part in parts] == [None] * 9


def test_warns_of_a_behaviour_without_variety() -> None:
    """3 different items for slates of 2 are few, 4 are not."""
    few, enough = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 1], [2, 3]])
    slates = torch.stack([few[torch.tensor([0, 0, 1])], enough[torch.tensor([0, 0, 1])]])
    data = Trajectories(slates, torch.ones(2, 3, 2, dtype=torch.uint8), policy_id=torch.tensor([0, 1]))
    (warning,) = warned(data, behaviours=2)
    assert warning.startswith("behaviour 0 shows only 3 different items")


def test_behaviours_and_policy_ids_need_not_match() -> None:
    data = made(behaviours=3)
    data.policy_id = data.policy_id * 2  # type: ignore[operator]
    found = card.describe(data, named(2), num_items=250, anchors=ANCHORS)
    assert [part["name"] for part in found["behaviours"]] == ["behaviour 0", "policy 2", "policy 4"]
    assert found["warnings"][0] == "behaviour 1 has no trajectories."
    assert sum(part["trajectories"] for part in found["behaviours"]) == len(data)
