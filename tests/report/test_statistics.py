"""The statistics of a report, against hand computations and derivations without scipy's or statsmodels' own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from slaterl.report.statistics import RESAMPLES, half_width, iqm, summarise, welch_holm

# Student's 97.5 % quantiles as tables have them
QUANTILE = {1: 12.7062, 2: 4.3027, 3: 3.1824, 9: 2.2622}


def welch_p(a: list[float], b: list[float]) -> float:
    """Two-sided p of Welch's t-test from its textbook formulas: Student's tail is an incomplete beta function."""
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    t2 = (np.mean(a) - np.mean(b)) ** 2 / (va + vb)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return float(special.betainc(freedom / 2, 0.5, freedom / (freedom + t2)))


def holm(raw: dict[str, float]) -> dict[str, float]:
    """The smallest p times the number of tests, the next times one less, and never less than the one before."""
    found, floor = {}, 0.0
    for rank, name in enumerate(sorted(raw, key=lambda name: raw[name])):
        floor = found[name] = max(floor, min(1.0, raw[name] * (len(raw) - rank)))
    return found


def seeds(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 15, shape)


def test_one_seed_has_no_interval() -> None:
    found = summarise([42.5])
    assert (found.seeds, found.mean, found.median, found.iqm) == (1, 42.5, 42.5, 42.5)
    assert found.interval is None and found.iqm_low is None and found.iqm_high is None


def test_two_seeds_by_hand() -> None:
    """Of 10 and 14 the deviation is sqrt(8), the error of the mean 2; resamples have the means 10, 12 and 14."""
    found = summarise([10, 14])
    assert (found.seeds, found.mean, found.median, found.iqm) == (2, 12, 12, 12)
    assert found.interval == pytest.approx(2 * QUANTILE[1], rel=1e-5)
    assert (found.iqm_low, found.iqm_high) == (10, 14), "a quarter of the resamples lies at each end"


@pytest.mark.parametrize("count", [2, 3, 10])
def test_equal_values_have_intervals_of_no_width(count: int) -> None:
    found = summarise([7.25] * count)
    assert (found.interval, found.iqm_low, found.iqm_high, found.iqm) == (0, 7.25, 7.25, 7.25)


def test_all_numbers_are_plain_floats() -> None:
    """They go into JSON and CSV, where NumPy's would show their type."""
    for values in ([1.0], [1.0, 2.0], [3.0, 3.0], list(seeds(10))):
        found = summarise(values)
        assert type(found.mean) is type(found.median) is type(found.iqm) is float
        assert {type(value) for value in (found.interval, found.iqm_low, found.iqm_high)} <= {float, type(None)}


@pytest.mark.parametrize("count", [3, 4, 10])
def test_interval_of_the_mean(count: int) -> None:
    values = seeds(count)
    deviation = math.sqrt(sum((values - values.sum() / count) ** 2) / (count - 1))
    expected = QUANTILE[count - 1] * deviation / math.sqrt(count)
    assert half_width(values) == pytest.approx(expected, rel=1e-4)
    assert summarise(list(values)).interval == pytest.approx(expected, rel=1e-4)


def test_interval_covers_the_mean_in_95_of_100_experiments() -> None:
    many = seeds(2000, 4, seed=1)
    hits = np.mean([abs(values.mean() - 100) <= half_width(values) for values in many])
    assert abs(hits - 0.95) < 0.015  # three standard errors of this count


def test_iqm_is_the_mean_of_the_middle_half() -> None:
    """Of eight seeds the two best and the two worst do not count, however far off; order does not matter."""
    assert iqm(np.array([5.0, -1e6, 3, 4, 1e6, 0, 6, 9e9])) == (3 + 4 + 5 + 6) / 4
    values = seeds(40)
    assert iqm(values) == pytest.approx(np.sort(values)[10:30].mean())
    found = summarise([1, 2, 3, 100])
    assert (found.iqm, found.median, found.mean) == (2.5, 2.5, 26.5)


def test_interval_of_the_iqm_is_that_of_a_bootstrap() -> None:
    """Another generator's resamples, sorted and cut by NumPy: equal but for their noise."""
    values = seeds(10)
    drawn = np.random.default_rng(5).choice(values, (20_000, 10))
    expected = np.quantile(np.sort(drawn, axis=1)[:, 2:8].mean(1), [0.025, 0.975])
    found = summarise(list(values))
    assert found.iqm_low is not None and found.iqm_high is not None and RESAMPLES >= 1000
    assert [found.iqm_low, found.iqm_high] == pytest.approx(expected, abs=0.1 * np.ptp(expected))
    assert found.iqm_low < found.iqm < found.iqm_high
    assert summarise(list(values)) == found, "the same runs must give the same report"


def test_welch_is_right_for_unequal_numbers_and_spreads() -> None:
    few, many = [1.0, 5.0, 3.5], list(seeds(8) / 20)
    found = welch_holm({"few": few, "many": many}, "many")
    assert found == {"few": pytest.approx(welch_p(few, many))}
    assert found["few"] != pytest.approx(stats.ttest_ind(few, many).pvalue), "Student's test is another"


def test_holm_by_hand() -> None:
    """Raw p a < b < c: times 3, 2 and 1, none below the one before it, none above 1."""
    values = {"base": [0.0, 1, 2], "c": [0.1, 1.1, 2.1], "a": [20.0, 21, 22], "b": [3.0, 4, 5]}
    raw = {name: welch_p(values[name], values["base"]) for name in "abc"}
    assert raw["a"] < raw["b"] < raw["c"]
    found = welch_holm(values, "base")
    assert found == {
        "a": pytest.approx(3 * raw["a"]),
        "b": pytest.approx(2 * raw["b"]),
        "c": pytest.approx(raw["c"]),
    }


def test_holm_keeps_the_order() -> None:
    """Close p-values: the corrected ones of the later must not fall below the first's."""
    values = {"base": [0.0, 1, 2]} | {f"m{i}": [2 + i / 100, 3, 4 + i / 50] for i in range(4)}
    raw = {name: welch_p(own, values["base"]) for name, own in values.items() if name != "base"}
    found = welch_holm(values, "base")
    assert found == pytest.approx(holm(raw))
    assert max(found.values()) == pytest.approx(4 * min(raw.values())), "one p rules them all here"


def test_corrected_p_ends_at_one() -> None:
    values = {"base": [1.0, 2, 3], "a": [1.0, 2, 3.1], "b": [1.1, 2, 3]}
    assert welch_holm(values, "base") == {"a": 1, "b": 1}


def test_single_seeds_are_not_tested_and_do_not_count() -> None:
    values = {"base": [0.0, 1, 2], "one": [50.0], "a": [3.0, 4, 5]}
    assert welch_holm(values, "base") == {"a": pytest.approx(welch_p(values["a"], values["base"]))}
    assert welch_holm(values, "one") == {}
    assert welch_holm({"base": [0.0, 1]}, "base") == {}


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_no_spread_on_either_side() -> None:
    """Methods that are the same for all seeds: 0/0 is no p-value."""
    values = {"base": [5.0, 5], "equal": [5.0, 5, 5], "other": [6.0, 6]}
    assert welch_holm(values, "base") == {"equal": 1, "other": 0}
