"""Statistics over seeds: means with intervals, robust means, and tests against another method."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

RESAMPLES = 2000


@dataclass(frozen=True)
class Summary:
    """Returns over seeds. Intervals and the deviation need two seeds; with one seed they are None."""

    seeds: int
    mean: float
    interval: float | None  # half-width of Student's 95 % interval of the mean
    deviation: float | None  # standard deviation over seeds
    median: float
    iqm: float  # mean of the middle half (Agarwal et al. 2021, arXiv 2108.13264)
    iqm_low: float | None  # bootstrapped 95 % interval
    iqm_high: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Summarise one value per seed."""
    array = np.asarray(values, dtype=float)
    low = high = interval = None
    if len(array) > 1:
        interval = half_width(array)
        if np.ptp(array) > 0:
            found = stats.bootstrap(
                (array,), iqm, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
            )
            low, high = found.confidence_interval
        else:
            low = high = float(array[0])
    return Summary(
        seeds=len(array),
        mean=float(array.mean()),
        interval=interval,
        deviation=float(array.std(ddof=1)) if len(array) > 1 else None,
        median=float(np.median(array)),
        iqm=float(iqm(array)),
        iqm_low=None if low is None else float(low),
        iqm_high=None if high is None else float(high),
    )


def iqm(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Interquartile mean."""
    return stats.trim_mean(values, 0.25, axis=axis)


def half_width(values: np.ndarray) -> float:
    """Half-width of Student's 95 % interval of the mean of at least two values."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def welch_holm(values: Mapping[str, Sequence[float]], against: str) -> dict[str, float]:
    """Return p-values of Welch's t-test of each other method against one, after Holm's correction.

    Methods with one seed cannot be tested and are left out.
    """
    base = values[against]
    testable = [name for name, own in values.items() if name != against and min(len(own), len(base)) > 1]
    if not testable:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal values give NaN, which is handled below
        raw = [stats.ttest_ind(values[name], base, equal_var=False).pvalue for name in testable]
    # without any spread on both sides, equal means give p = 1 and different means p = 0
    raw = [
        (1.0 if np.mean(values[name]) == np.mean(base) else 0.0) if math.isnan(p) else float(p)
        for name, p in zip(testable, raw, strict=True)
    ]
    corrected = multipletests(raw, method="holm")[1]
    return dict(zip(testable, map(float, corrected), strict=True))
