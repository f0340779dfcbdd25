"""Intervals of a median and of the ratio of two medians over a few launches.

The interval of a median is that of the sign test, interpolated between order statistics (Hettmansperger and Sheather,
1986): it covers 95 % from 6 launches on for any distribution. With n < 6 launches it is their range, which covers
1 − 2^(1−n); `confidence` returns that. The percentile bootstrap would cover 87 % with 7 launches and 97 % with 9. The
ratio of two unpaired medians is bootstrapped. scripts/interval_coverage.py measures the coverage of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

CONFIDENCE = 0.95
RESAMPLES = 4999
SEED = 20_02_1971


class Estimate(NamedTuple):
    """A value and its interval; NaN where unknown."""

    value: float
    low: float
    high: float


BLANK = Estimate(np.nan, np.nan, np.nan)


def confidence(n: int) -> float:
    """Coverage of `median_interval` of n launches: 0.95, less below 6 launches, NaN below 2."""
    return min(CONFIDENCE, _coverage(n, 1)) if n > 1 else np.nan


def median_interval(values: Iterable[float]) -> Estimate:
    """The median and its interval; the interval is NaN for a single value, everything for none."""
    samples = _sorted(values)
    n = samples.size
    if n == 0:
        return BLANK
    median = float(np.median(samples))
    if n == 1:
        return Estimate(median, np.nan, np.nan)
    depth, weight = _order_statistics(n)
    low = samples[depth - 1] + weight * (samples[depth] - samples[depth - 1])
    high = samples[n - depth] + weight * (samples[n - depth - 1] - samples[n - depth])
    # Interpolation may round past the median.
    return Estimate(median, min(float(low), median), max(float(high), median))


def ratio_interval(numerator: Iterable[float], denominator: Iterable[float]) -> Estimate:
    """The ratio of two medians with its 95 % percentile bootstrap interval; the arms are resampled independently.

    NaN if an arm is empty; the interval is NaN if an arm has a single value.
    """
    top, bottom = _sorted(numerator), _sorted(denominator)
    if top.size == 0 or bottom.size == 0 or np.median(bottom) == 0:
        return BLANK
    value = float(np.median(top) / np.median(bottom))
    if min(top.size, bottom.size) == 1:
        return Estimate(value, np.nan, np.nan)
    ratios = _resampled_medians(top, arm=0) / _resampled_medians(bottom, arm=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _sorted(values: Iterable[float]) -> Samples:
    """The values as a sorted array: their order must not change the bootstrap."""
    return np.sort(np.asarray(list(values), dtype=np.float64))


def _coverage(n: int, depth: int) -> float:
    """Probability that the median lies between the depth-th smallest and the depth-th largest of n values."""
    return float(1 - 2 * sum(comb(n, k) for k in range(depth)) / 2**n)


@lru_cache
def _order_statistics(n: int) -> tuple[int, float]:
    """Depth of the order statistics whose interval covers 95 %, and the share of the way to the next inner ones."""
    depth = 1
    while depth < n // 2 and _coverage(n, depth + 1) >= CONFIDENCE:
        depth += 1
    wide = _coverage(n, depth)
    if wide < CONFIDENCE or depth == n // 2:
        return depth, 0.0
    share = (wide - CONFIDENCE) / (wide - _coverage(n, depth + 1))
    return depth, (n - depth) * share / (depth + (n - 2 * depth) * share)


def _resampled_medians(samples: Samples, arm: int) -> Samples:
    """Medians of RESAMPLES resamples, drawn with replacement from sorted samples."""
    lower, upper = _middle_draws(samples.size, arm)
    return np.asarray((samples[lower] + samples[upper]) / 2, dtype=np.float64)


@lru_cache(maxsize=32)
def _middle_draws(n: int, arm: int) -> tuple[Indices, Indices]:
    """Indices of the two middle values of each resample of n sorted samples; each arm has draws of its own."""
    draws = np.random.default_rng([SEED, arm]).integers(n, size=(RESAMPLES, n))
    draws.sort(axis=1)
    return draws[:, (n - 1) // 2], draws[:, n // 2]
