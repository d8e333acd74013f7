"""The figures of a user model's page, on examples small enough for pencil and paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from slaterl.data.trajectories import Trajectories
from slaterl.user_models.coverage import PRIOR, coverage_of, covered, strangeness
from slaterl.user_models.quality import advantage, baselines, departures, quality, quality_of_leaving
from tests.user_models.made import families, padded_otherwise, tiny_sessions


def example() -> Trajectories:
    """Two sessions of three and one turns, with slates of two of three items."""
    slates = torch.tensor([[[0, 1], [0, 1], [0, 1], [2, 0]], [[1, 2], [0, 2], [2, 2], [2, 2]]])
    clicks = torch.tensor([[[1, 1], [1, 0], [0, 0], [1, 1]], [[1, 1], [1, 0], [1, 1], [1, 1]]])
    return Trajectories(slates, clicks, lengths=torch.tensor([3, 1]), truncated=torch.tensor([False, True]))


def test_baselines() -> None:
    found = baselines(example(), torch.tensor([[[0, 0], [2, 1]]]), num_items=3)
    # four turns count: rank 0 has three clicks, rank 1 one
    assert found["overall"].tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
    assert found["rank"].tolist() == [[[0.75, 0.25], [0.75, 0.25]]]
    # item 0 at rank 0: 2 clicks of 3; at rank 1: 1 of 1; item 2 at rank 0: 1 of 1; item 1 at rank 1: 0 of 2
    expected = [[[9.5 / 13, 3.5 / 11], [8.5 / 11, 2.5 / 12]]]
    np.testing.assert_allclose(found["item_rank"], expected)


def test_quality() -> None:
    data = example()
    chance = torch.full((2, 3, 2), 0.99)
    chance[0, 0], chance[0, 1], chance[0, 2] = (
        torch.tensor([0.8, 0.3]),
        torch.tensor([0.6, 0.2]),
        torch.tensor([0.6, 0.1]),
    )
    chance[1, 0] = torch.tensor([0.7, 0.4])
    found = quality(chance, data)
    # rank 0: 0.8 clicked, 0.6 not, 0.6 clicked, 0.7 clicked; rank 1: 0.3 not, 0.2 not, 0.1 clicked, 0.4 not
    first = -(math.log(0.8) + math.log(0.4) + math.log(0.6) + math.log(0.7)) / 4
    second = -(math.log(0.7) + math.log(0.8) + math.log(0.1) + math.log(0.6)) / 4
    assert [rank["log_loss"] for rank in found["ranks"]] == pytest.approx([first, second], abs=1e-6)
    assert found["log_loss"] == pytest.approx((first + second) / 2, abs=1e-6)
    assert [rank["auc"] for rank in found["ranks"]] == pytest.approx([2.5 / 3, 0.0])
    assert found["auc"] == pytest.approx((4 + 3.5 + 4 + 0) / 16)
    assert [rank["rate"] for rank in found["ranks"]] == [0.75, 0.25]
    # clicks of a turn 1, 0, 2, 1, predicted 1.1, 0.8, 0.7, 1.1
    assert found["r2"] == pytest.approx(1 - (0.01 + 0.64 + 1.69 + 0.01) / 2, abs=1e-6)
    groups = found["ranks"][1]["calibration"]
    assert [(round(group["predicted"], 6), group["rate"]) for group in groups] == [
        (0.1, 1),
        (0.2, 0),
        (0.3, 0),
        (0.4, 0),
    ]


def test_what_cannot_be_measured_is_none() -> None:
    data = Trajectories(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2))
    found = quality(torch.full((1, 2, 2), 0.1), data)
    assert found["auc"] is None and found["r2"] is None
    assert advantage(torch.full((1, 2, 2), 0.1), torch.full((1, 2, 2), 0.2), data)["interval"] is None


def test_advantage_is_over_sessions() -> None:
    data = example()
    one, other = torch.full((2, 3, 2), 0.3), torch.full((2, 3, 2), 0.6)
    found = advantage(one, other, data)
    gain = {1: math.log(0.3) - math.log(0.6), 0: math.log(0.7) - math.log(0.4)}
    sums = np.array([3 * gain[1] + 3 * gain[0], gain[1] + gain[0]])
    sizes = np.array([6, 2])
    mean = sums.sum() / 8
    assert found["mean"] == pytest.approx(mean, abs=1e-6)
    deviation = (sums - mean * sizes).std(ddof=1)
    assert found["interval"] == pytest.approx(1.96 * deviation * math.sqrt(2) / 8, abs=1e-6)


def test_departures() -> None:
    left, known = departures(example())
    assert left.tolist() == [[False, False, True], [False, False, False]]
    assert known.tolist() == [[True, True, True], [False, False, False]]
    uncut = Trajectories(example().slates, example().clicks, lengths=torch.tensor([3, 1]))
    left, known = departures(uncut)
    assert left.tolist() == [[False, False, True], [True, False, False]]
    assert known.tolist() == [[True, True, True], [True, False, False]]


def test_leaving() -> None:
    chance = torch.tensor([[0.1, 0.2, 0.4], [0.9, 0.9, 0.9]])
    found = quality_of_leaving(chance, example())
    assert found["rate"] == pytest.approx(1 / 3)
    assert found["log_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.4)) / 3)
    assert found["baseline"] == pytest.approx(-(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3)
    assert found["auc"] == 1


def test_coverage() -> None:
    # cells: (0, 0) three times, (1, 1) twice, (2, 0), (0, 1) and (2, 1) once; pairs: 01 twice, 02 twice
    data = example()
    assert covered(coverage_of(data, 3, 1), data, 3) == {"covered_cells": 1.0, "covered_pairs": 1.0}
    assert covered(coverage_of(data, 3, 2), data, 3) == {"covered_cells": 5 / 8, "covered_pairs": 1.0}
    assert covered(coverage_of(data, 3, 3), data, 3) == {"covered_cells": 3 / 8, "covered_pairs": 0.0}


def test_coverage_is_counted_over_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_sessions(9)
    whole = coverage_of(data, 30, 2)
    monkeypatch.setattr("slaterl.user_models.coverage.SESSIONS", 2)
    for one, other in zip(whole[:4], coverage_of(data, 30, 2)[:4], strict=True):
        assert one is not None and other is not None and torch.equal(one, other) and len(one)


def test_padding_changes_no_figure() -> None:
    data = tiny_sessions()
    longer = padded_otherwise(data)
    chance = torch.rand(data.clicks[:, 1:].shape, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([chance, torch.ones(len(data), 2, chance.shape[2])], dim=1)
    assert quality(chance, data) == quality(padded, longer)
    assert advantage(chance, 1 - chance, data) == advantage(padded, 1 - padded, longer)
    found = [quality_of_leaving(part[:, :, 0], sessions) for part, sessions in ((chance, data), (padded, longer))]
    assert found[0] == found[1]
    assert covered(coverage_of(data, 30, 2), data, 30) == covered(coverage_of(longer, 30, 2), longer, 30)
    slates = data.slates[:, 1:]
    for one, other in zip(baselines(data, slates, 30).values(), baselines(longer, slates, 30).values(), strict=True):
        assert torch.equal(one, other)


def test_slates_of_known_items_and_pairs_that_are_new_as_a_whole() -> None:
    training, held_out = families(3000, 0), families(100, 1)
    seen = coverage_of(training, 30, 10, held_out)
    mixed = families(50, 2, strays=0)
    mixed.slates[:, 1:] = torch.tensor([0, 5, 1, 6, 2])
    shares = covered(seen, mixed, 30)
    assert shares["covered_cells"] == shares["covered_pairs"] == 1  # the random slates show each of them
    assert shares["covered_slates"] == 0
    assert covered(seen, families(50, 3, strays=0), 30)["covered_slates"] == 1
    assert covered(seen, families(50, 4), 30)["covered_slates"] == pytest.approx(0.95, abs=0.03)
    rare = families(50, 5, strays=1)  # as strange as the data are
    assert covered(seen, rare, 30)["covered_slates"] > 0.7


def test_random_data_cover_all_slates() -> None:
    seen = coverage_of(families(1000, 0, strays=1), 30, 10, families(100, 1, strays=1))
    assert covered(seen, families(50, 2, strays=0), 30)["covered_slates"] > 0.6
    assert covered(seen, families(50, 3, strays=1), 30)["covered_slates"] == pytest.approx(0.95, abs=0.03)


def test_strangeness_by_hand() -> None:
    """Three items in slates of two: the pair 0, 1 was shown 30 times, 0, 2 ten times, 1, 2 five times, 2, 2 never."""
    slates = torch.tensor([[0, 1]] * 30 + [[2, 0]] * 10 + [[2, 1]] * 5).unsqueeze(0)
    slates = torch.cat([slates[:, :1], slates], 1)
    seen = coverage_of(Trajectories(slates, torch.zeros_like(slates)), 3, 10)
    share = np.array([40, 35, 15]) / 90
    expected = {(0, 1): (90 * share[0] * share[1], 30), (0, 2): (90 * share[0] * share[2], 10)}
    expected |= {(1, 2): (90 * share[1] * share[2], 0), (2, 2): (45 * share[2] ** 2, 0)}  # below ten counts as none
    for pair, (chance, count) in expected.items():
        found = strangeness(seen, torch.tensor([pair[::-1]]), 3).item()
        assert found == pytest.approx(max(0, math.log((chance + PRIOR) / (count + PRIOR))))
    assert strangeness(seen, torch.tensor([[1]]), 3).item() == 0
