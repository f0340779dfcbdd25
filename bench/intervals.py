"""Interval of a median over a few launches.

It is that of the sign test, interpolated between order statistics (Hettmansperger and Sheather, 1986): it covers 95 %
from 6 launches on for any distribution. With n < 6 launches it is their range, which covers 1 − 2^(1−n); `confidence`
returns that. The percentile bootstrap would cover 87 % with 7 launches and 97 % with 9.
scripts/interval_coverage.py measures the coverage.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]

CONFIDENCE = 0.95


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


def _sorted(values: Iterable[float]) -> Samples:
    """The values as a sorted array."""
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
