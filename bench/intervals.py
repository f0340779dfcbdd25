"""How sure a number is: intervals of medians and of their ratios over a handful of launches.

The percentile bootstrap of one median covers 87 % with 7 launches and 97 % with 9: few order statistics leave it no
choice in between. So a median gets the exact interval of the sign test, interpolated between order statistics
(Hettmansperger and Sheather, 1986), which covers 95 % from 6 launches on, whatever the distribution. With fewer it is
the whole range, which covers 1 − 2^(1−n): `confidence` says so. Ratios of two arms are bootstrapped.
scripts/interval_coverage.py measures how often each interval covers the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    """Share of medians that the interval of n launches covers: 0.95, less below 6 launches, NaN below 2."""
    return min(CONFIDENCE, _coverage(n, 1)) if n > 1 else np.nan


def median_interval(values: Iterable[float]) -> Estimate:
    """The median of launches and its exact interval, blank for fewer than two launches."""
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
    # Rounding in the interpolation must not put the median outside of its interval.
    return Estimate(median, min(float(low), median), max(float(high), median))


def ratio_interval(numerator: Iterable[float], denominator: Iterable[float]) -> Estimate:
    """The ratio of two medians and its 95 % percentile bootstrap; each arm is resampled on its own.

    Blank with an empty arm, without an interval when an arm has a single launch.
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


def paired_interval(numerator: Mapping[int, float], denominator: Mapping[int, float]) -> tuple[Estimate, int]:
    """The median ratio of launches of the same repeat, its exact interval, and the number of pairs.

    Drift between repeats hits both launches of a pair alike and cancels. Logarithms make both arms equal: turning
    the ratio round turns the interval round.
    """
    common = sorted(numerator.keys() & denominator.keys())
    ratios = [numerator[repeat] / denominator[repeat] for repeat in common]
    logs = median_interval(np.log(ratios))
    return Estimate(*(float(np.exp(bound)) for bound in logs)), len(common)


def _sorted(values: Iterable[float]) -> Samples:
    """Sort, so that the order in which launches were written cannot move an interval."""
    return np.sort(np.asarray(list(values), dtype=np.float64))


def _coverage(n: int, depth: int) -> float:
    """Chance that the median lies between the depth-th smallest and the depth-th largest of n launches."""
    return float(1 - 2 * sum(comb(n, k) for k in range(depth)) / 2**n)


@lru_cache
def _order_statistics(n: int) -> tuple[int, float]:
    """Depth of the order statistics that bound the median of n launches, and how far to go to the next ones."""
    depth = 1
    while depth < n // 2 and _coverage(n, depth + 1) >= CONFIDENCE:
        depth += 1
    wide = _coverage(n, depth)
    if wide < CONFIDENCE or depth == n // 2:
        return depth, 0.0
    share = (wide - CONFIDENCE) / (wide - _coverage(n, depth + 1))
    return depth, (n - depth) * share / (depth + (n - 2 * depth) * share)


def _resampled_medians(samples: Samples, arm: int) -> Samples:
    """Medians of RESAMPLES draws with replacement from sorted samples."""
    lower, upper = _middle_draws(samples.size, arm)
    return np.asarray((samples[lower] + samples[upper]) / 2, dtype=np.float64)


@lru_cache(maxsize=32)
def _middle_draws(n: int, arm: int) -> tuple[Indices, Indices]:
    """Which of n sorted samples are in the middle of each resample; two arms never share their draws."""
    draws = np.random.default_rng([SEED, arm]).integers(n, size=(RESAMPLES, n))
    draws.sort(axis=1)
    return draws[:, (n - 1) // 2], draws[:, n // 2]
