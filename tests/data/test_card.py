"""The dataset card: its numbers against hand counts and NumPy, its warnings, its README and its picture."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from slaterl.data import card
from slaterl.data.trajectories import Trajectories
from slaterl.errors import UserError
from slaterl.seeds import stream

ANCHORS = {"random": 1.0, "constant_slate": 2.0, "short_term_oracle": 3.0, "expert": 6.0}
UNKNOWN: dict[str, float | None] = dict.fromkeys(ANCHORS)
BEHAVIOURS: list[dict[str, Any]] = [
    {"name": "good", "policy": "expert", "noise": 0.0, "epsilon": 0.0, "checkpoint": "0123abcd", "trajectories": 2},
    {"name": "bad", "policy": "medium", "noise": 0.3, "epsilon": 0.0, "checkpoint": None, "trajectories": 1},
]


def tiny() -> Trajectories:
    """3 trajectories of 2 turns, slates of 2 out of 5 items; frame 0 shows what else is never shown, and is clicked."""
    slates = [[[4, 4], [0, 1], [0, 1]], [[4, 4], [1, 0], [0, 0]], [[4, 4], [0, 2], [0, 2]]]
    clicks = [[[1, 1], [1, 1], [1, 0]], [[1, 1], [0, 1], [1, 0]], [[1, 1], [0, 0], [0, 0]]]
    ids = torch.tensor([0, 0, 1], dtype=torch.int16)
    return Trajectories(torch.tensor(slates), torch.tensor(clicks, dtype=torch.uint8), policy_id=ids)


def made(count: int = 300, turns: int = 7, slots: int = 4, items: int = 250, behaviours: int = 3) -> Trajectories:
    """Behaviours of different concentration and click rates, in no order."""
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
    """One slate for everybody."""
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
    assert found["slates"] == pytest.approx({"distinct": 4 / 6, "with_repeats": 1 / 6})
    assert found["click_rate_by_rank"] == pytest.approx([3 / 6, 2 / 6])
    assert found["clicks_per_turn"] == pytest.approx([1, 2 / 3])
    assert found["normalised_score"] == pytest.approx(100 * (5 / 3 - 1) / 5)
    scores = {name: anchor["normalised_score"] for name, anchor in found["anchors"].items()}
    assert scores == pytest.approx({"random": 0, "constant_slate": 20, "short_term_oracle": 40, "expert": 100})

    good, bad = found["behaviours"]
    assert (good["name"], good["checkpoint"], bad["noise"]) == ("good", "0123abcd", 0.3)  # what was told of them
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


def test_no_warning_without_a_reason() -> None:
    assert warned(made()) == []
    assert warned(made(), constant_slate=5.4) == []  # nine tenths of the expert's return, but not of its score


@pytest.mark.parametrize(
    ("anchors", "words"),
    [
        ({"constant_slate": 5.5}, ["Too easy", "5.5", "6.0", "score 90"]),
        ({"random": 1e3, "expert": 2e3}, ["less than random slates", "1000.0"]),
        ({"short_term_oracle": 6.5}, ["short-term oracle", "6.5", "6.0"]),
        ({"expert": None}, ["No normalised scores", "an expert is not known"]),
        ({"random": None}, ["No normalised scores", "random slates is not known"]),
        ({"expert": 1.0}, ["No normalised scores", "expert returns 1.0"]),
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
    assert [part["normalised_score"] for part in parts] == [None] * 8


def test_warns_of_a_behaviour_without_variety() -> None:
    """3 different items for slates of 2 are few, 4 are not."""
    few, enough = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 1], [2, 3]])
    slates = torch.stack([few[torch.tensor([0, 0, 1])], enough[torch.tensor([0, 0, 1])]])
    data = Trajectories(slates, torch.ones(2, 3, 2, dtype=torch.uint8), policy_id=torch.tensor([0, 1]))
    (warning,) = warned(data, behaviours=2)
    assert warning.startswith("behaviour 0 shows 3 different items")


def test_behaviours_and_policy_ids_need_not_match() -> None:
    data = made(behaviours=3)
    data.policy_id = data.policy_id * 2  # type: ignore[operator]
    found = card.describe(data, named(2), num_items=250, anchors=ANCHORS)
    assert [part["name"] for part in found["behaviours"]] == ["behaviour 0", "policy 2", "policy 4"]
    assert found["warnings"][0] == "behaviour 1 has no trajectories."
    assert sum(part["trajectories"] for part in found["behaviours"]) == len(data)


def tables(text: str) -> dict[str, dict[str, list[str]]]:
    """The tables of a Markdown text: heading -> first cell -> the other cells of its row."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            rows = found.setdefault(line.lstrip("# "), {})
        elif line.startswith("|"):
            first, *others = [cell.strip() for cell in line.strip("|").split("|")]
            rows[first] = others
    return found


def test_markdown_holds_the_numbers() -> None:
    found = card.describe(tiny(), BEHAVIOURS, num_items=5, anchors=ANCHORS) | {"title": "tiny on nothing"}
    text = card.as_markdown(found)
    first = text.split("\n\n## ")[0]
    assert first.startswith("# tiny on nothing\n\n3 trajectories of 2 turns by good (2), bad (noise 0.3) (1); ")
    assert "slates of 2 out of 5 items" in first
    assert "mean 1.7, standard deviation 1.5, normalised score 13.3" in first
    assert [line[15:] for line in first.splitlines() if line.startswith("- **Warning:** ")] == found["warnings"]
    assert "](card.png)" in first

    rows = tables(text)
    beside = rows["Beside others in the same environment"]
    assert list(beside)[2:] == [  # by return
        "random slates",
        "**mean of these data**",
        "constant slate, decode(0)",
        "short-term oracle",
        "expert",
    ]
    assert beside["constant slate, decode(0)"] == ["2.0", "20.0"]
    assert beside["**mean of these data**"] == ["1.7", "13.3"]
    returns = rows["Returns"]
    assert returns[""] == ["all", "good", "bad (noise 0.3)"]
    assert returns["trajectories"] == ["3", "2", "1"]
    assert (returns["mean"], returns["std"]) == (["1.7", "2.5", "0.0"], ["1.5", "0.7", "0.0"])
    assert (returns["min"], returns["max"]) == (["0.0", "2.0", "0.0"], ["3.0", "3.0", "0.0"])
    assert returns["normalised score of the mean"] == ["13.3", "30.0", "-20.0"]
    items = rows["Slates and items"]
    assert items["items shown at least once"] == ["3", "2", "2"]
    assert items["share of the catalogue shown"] == ["60.0%", "40.0%", "40.0%"]
    assert items["Gini coefficient of impressions (0: even)"][0] == "0.567"
    assert items["slates that repeat an item"] == ["16.7%", "25.0%", "0.0%"]
    assert items["different slates among all slates"] == ["66.7%", "75.0%", "50.0%"]
    assert rows["Clicks per shown item, by rank"]["rank 2"] == ["0.3333", "0.5000", "0.0000"]
    assert rows["Clicks per turn, by turn"]["turn 2"] == ["0.667", "1.000", "0.000"]
    assert rows["Behaviours"]["bad"] == ["medium", "0.3", "0.0", "None"]


def test_markdown_of_one_behaviour_of_which_little_is_known() -> None:
    data = constant([3, 1], turns=25)
    found = card.describe(data, [{"name": "file", "format": "npz"}], num_items=9, anchors=UNKNOWN)
    text = card.as_markdown(found, picture=None)
    rows = tables(text)
    assert rows["Returns"][""] == ["file"]  # no second column that says the same
    assert rows["Returns"]["normalised score of the mean"] == ["not known"]
    assert rows["Beside others in the same environment"]["expert"] == ["not known", "not known"]
    assert "![" not in text
    assert len(found["warnings"]) == text.count("**Warning:**") == 2
    # turns in stretches: means over all of them
    turns = {row: float(cells[0]) for row, cells in rows["Clicks per turn, by turn"].items() if row.startswith("turn")}
    assert len(turns) == 10
    assert turns["turns 3 to 5"] == pytest.approx(np.mean(found["clicks_per_turn"][2:5]), abs=1e-3)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that the card makes."""
    seen: list[Figure] = []

    def figure(*args: Any, **options: Any) -> Figure:
        seen.append(Figure(*args, **options))
        return seen[-1]

    monkeypatch.setattr(card, "Figure", figure)
    return seen


@pytest.mark.parametrize(
    "anchors",
    [
        ANCHORS,
        {"random": 9.0, "constant_slate": 9.2, "short_term_oracle": 9.3, "expert": 9.5},  # all in one place
        {"random": 2.0, "constant_slate": 89.0, "short_term_oracle": 45.0, "expert": 90.0},  # far from the data
    ],
)
def test_picture_shows_the_anchors_apart(tmp_path: Path, figures: list[Figure], anchors: dict[str, float]) -> None:
    found = card.describe(made(), named(3), num_items=250, anchors=anchors)
    card.draw(found, tmp_path / "card.png")
    (figure,) = figures
    axis = figure.axes[0]
    assert sorted(line.get_xdata()[0] for line in axis.lines) == sorted(anchors.values())  # type: ignore[index]
    assert {text.get_text().strip().split(" (score")[0] for text in axis.texts} == {
        f"{card.ANCHORS[name]} {value:.1f}" for name, value in anchors.items()
    }
    middle = sum(axis.get_xlim()) / 2
    tops = {line.get_xdata()[0]: axis.transAxes.transform((0, line.get_ydata()[1]))[1] for line in axis.lines}  # type: ignore[index]
    for text in axis.texts:
        value, box = text.get_position()[0], text.get_window_extent()
        assert text.get_ha() == ("left" if value <= middle else "right")  # inwards
        assert box.y0 < tops[value] < box.y1 + 3  # its line ends at it
        for other, top in tops.items():
            crossed = box.x0 < axis.transData.transform((other, 0))[0] < box.x1
            if other != value and crossed and (other <= middle) == (value <= middle):
                assert top < box.y0  # the others of its side end below
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    for box in boxes:
        assert axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1
        assert box.y1 <= axis.bbox.y1
    most = max(max(part["returns"]["histogram"]) for part in found["behaviours"])
    assert min(box.y0 for box in boxes) > axis.transData.transform((0, most))[1]  # above all bars


def test_picture_shows_each_behaviour(tmp_path: Path, figures: list[Figure]) -> None:
    found = card.describe(made(), named(3), num_items=250, anchors=ANCHORS)
    card.draw(found, tmp_path / "card.png")
    _, ranks, items, turns = figures[0].axes
    for index, part in enumerate(found["behaviours"]):
        assert list(ranks.lines[index].get_ydata()) == part["click_rate_by_rank"]  # type: ignore[arg-type]
        assert list(items.lines[index].get_ydata()) == part["items"]["share"]  # type: ignore[arg-type]
        assert list(turns.lines[index].get_ydata()) == part["clicks_per_turn"]  # type: ignore[arg-type]
    shown = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert [text.split(":")[0] for text in shown] == ["behaviour 0", "behaviour 1", "behaviour 2"]
    for axis in figures[0].axes:
        assert axis.get_title() and axis.get_xlabel() and axis.get_ylabel()


def test_picture_is_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "card.png"
    card.draw(card.describe(constant([3, 1]), named(1), num_items=9, anchors=UNKNOWN), path)
    assert imread(path).shape[:2] == (880, 1320)
    assert list(path.parent.iterdir()) == [path]  # nothing beside it
    before = path.read_bytes()
    with pytest.raises(UserError, match="cannot be written"):
        card.draw(card.describe(tiny(), BEHAVIOURS, num_items=5, anchors=ANCHORS), path / "below_a_file.png")
    assert path.read_bytes() == before
