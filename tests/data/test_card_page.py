"""The card's page and figure: they show the numbers, and are readable."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from slaterl.data import card_page
from slaterl.data.card import ANCHORS as LABELS
from slaterl.data.card import describe
from slaterl.data.card_page import as_markdown, draw
from slaterl.errors import UserError
from tests.data.test_card import ANCHORS, BEHAVIOURS, UNKNOWN, constant, made, named, tiny


def tables(text: str) -> dict[str, dict[str, list[str]]]:
    """Parse the tables of a Markdown text: heading -> first cell -> the other cells of its row."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            rows = found.setdefault(line.lstrip("# "), {})
        elif line.startswith("|"):
            first, *others = [cell.strip() for cell in line.strip("|").split("|")]
            rows[first] = others
    return found


def test_markdown_holds_the_numbers() -> None:
    found = describe(tiny(), BEHAVIOURS, num_items=5, anchors=ANCHORS) | {"title": "tiny on nothing"}
    text = as_markdown(found)
    first = text.split("\n\n## ")[0]
    assert first.startswith("# tiny on nothing\n\n3 trajectories of 2 turns by good (2), bad (noise 0.3) (1); ")
    assert "slates of 2 out of 5 items" in first
    assert "mean 1.7 ± 1.7 (95 %), standard deviation 1.5, normalised score 13.3" in first
    assert [line[15:] for line in first.splitlines() if line.startswith("- **Warning:** ")] == found["warnings"]
    assert "](card.png)" in first

    rows = tables(text)
    references = rows["Comparison with reference policies in the same environment"]
    assert list(references)[2:] == [  # by return
        "random slates",
        "**this dataset**",
        "constant slate, decode(0)",
        "constant slate, each slot's most frequent item",
        "short-term oracle",
        "expert",
    ]
    assert references["constant slate, decode(0)"] == ["2.0", "20.0"]
    assert references["**this dataset**"] == ["1.7", "13.3"]
    assert "shown to all users in all turns, reaches 150% of the mean return of the data." in text
    returns = rows["Returns"]
    assert returns[""] == ["all", "good", "bad (noise 0.3)"]
    assert returns["trajectories"] == ["3", "2", "1"]
    assert (returns["mean"], returns["standard deviation"]) == (["1.7", "2.5", "0.0"], ["1.5", "0.71", "0.0"])
    assert (returns["minimum"], returns["maximum"]) == (["0.0", "2.0", "0.0"], ["3.0", "3.0", "0.0"])
    assert returns["normalised score of the mean"] == ["13.3", "30.0", "-20.0"]
    items = rows["Slates and items"]
    assert items["items shown at least once"] == ["3", "2", "2"]
    assert items["share of the catalogue shown"] == ["60.0%", "40.0%", "40.0%"]
    assert items["Gini coefficient of impressions (0: uniform)"][0] == "0.567"
    assert items["share of slates with a repeated item"] == ["16.7%", "25.0%", "0.0%"]
    assert items["distinct slates"] == ["4", "3", "1"]
    assert items["effective number of items in a slot"][0] == "2.3"
    assert items["share of the slates' variance explained by turn and clicks"] == ["unknown"] * 3
    assert items["share of distinct slates"] == ["66.7%", "75.0%", "50.0%"]
    assert rows["Click rate by rank"]["rank 2"] == ["0.3333", "0.5000", "0.0000"]
    assert rows["Mean clicks per turn"]["turn 2"] == ["0.667", "1.000", "0.000"]
    assert rows["Behaviours"]["bad"] == ["medium", "0.3", "0.0", "None"]


def test_markdown_of_one_behaviour_of_which_little_is_known() -> None:
    data = constant([3, 1], turns=25)
    found = describe(data, [{"name": "file", "format": "npz"}], num_items=9, anchors=UNKNOWN)
    text = as_markdown(found, picture=None)
    rows = tables(text)
    assert rows["Returns"][""] == ["file"]  # no column "all" with the same values
    assert rows["Returns"]["normalised score of the mean"] == ["unknown"]
    assert rows["Comparison with reference policies in the same environment"]["expert"] == ["unknown", "unknown"]
    assert "![" not in text
    assert len(found["warnings"]) == text.count("**Warning:**") == 2
    # turns in stretches: means over all of them
    turns = {row: float(cells[0]) for row, cells in rows["Mean clicks per turn"].items() if row.startswith("turn")}
    assert len(turns) == 10
    assert turns["turns 3 to 5"] == pytest.approx(np.mean(found["clicks_per_turn"][2:5]), abs=1e-3)


def test_cards_of_older_versions_are_shown() -> None:
    found = describe(tiny(), BEHAVIOURS, num_items=5, anchors=ANCHORS)
    for part in (found, *found["behaviours"]):
        for name in ("count", "items_per_slot", "explained_by_history"):
            del part["slates"][name]
    del found["anchors"]["most_frequent_slate"]
    found["warnings"] = []
    items = tables(as_markdown(found))["Slates and items"]
    assert items["distinct slates"] == items["effective number of items in a slot"] == ["unknown"] * 3
    assert "most frequent item" not in as_markdown(found)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Record every figure that is created."""
    seen: list[Figure] = []

    def figure(*args: Any, **options: Any) -> Figure:
        seen.append(Figure(*args, **options))
        return seen[-1]

    monkeypatch.setattr(card_page, "Figure", figure)
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
    found = describe(made(), named(3), num_items=250, anchors=anchors)
    draw(found, tmp_path / "card.png")
    (figure,) = figures
    axis = figure.axes[0]
    assert sorted(line.get_xdata()[0] for line in axis.lines) == sorted(anchors.values())  # type: ignore[index]
    assert {text.get_text().strip().split(" (score")[0] for text in axis.texts} == {
        f"{LABELS[name]} {value:.1f}" for name, value in anchors.items()
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
    found = describe(made(), named(3), num_items=250, anchors=ANCHORS)
    draw(found, tmp_path / "card.png")
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
    draw(describe(constant([3, 1]), named(1), num_items=9, anchors=UNKNOWN), path)
    assert imread(path).shape[:2] == (880, 1320)
    assert list(path.parent.iterdir()) == [path]  # and no other file
    before = path.read_bytes()
    with pytest.raises(UserError, match="cannot be written"):
        draw(describe(tiny(), BEHAVIOURS, num_items=5, anchors=ANCHORS), path / "below_a_file.png")
    assert path.read_bytes() == before
