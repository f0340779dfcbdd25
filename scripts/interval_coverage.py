"""How often an interval covers the true value, in simulated launches whose median is known.

    python scripts/interval_coverage.py

A line per number of launches and kind of noise: the coverage that is promised and the coverage found, for the interval
of a median, the t interval of a paired ratio (from 3 pairs on) and the bootstrap interval of a ratio. Last the share of
simulated reports with any false verdict, which Holm's correction keeps at 5 % or less.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bench.intervals import confidence, median_interval, ratio_interval
from bench.report.verdicts import ABOVE, BELOW, EQUIVALENT, MARGIN, MIN_PAIRS, judge, paired

Samples = npt.NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, ...]], Samples]

TRIALS = 4000
COMPARISONS = 8  # in a simulated report
# The median of a normal distribution lies at its 4/9 quantile above the 10 % of disturbed launches.
DISTURBED_MEDIAN = 1 - 0.05 * 0.139710
# Rates with median 1: symmetric, skewed, with a long tail, and with one launch in ten disturbed (half the rate).
NOISES: dict[str, Noise] = {
    "normal": lambda rng, shape: 1 + 0.05 * rng.standard_normal(shape),
    "lognormal": lambda rng, shape: np.exp(0.2 * rng.standard_normal(shape)),
    "slow tail": lambda rng, shape: (1 + 0.1 * math.log(2)) / (1 + 0.1 * rng.exponential(size=shape)),
    "disturbed": lambda rng, shape: _disturbed(rng, shape),
}


def _disturbed(rng: np.random.Generator, shape: tuple[int, ...]) -> Samples:
    """Normal noise; each launch is slowed to half its rate with probability 0.1. Its median is scaled to 1."""
    rates = 1 + 0.05 * rng.standard_normal(shape)
    slowed: Samples = rates * np.where(rng.random(shape) < 0.1, 0.5, 1.0)
    return slowed / DISTURBED_MEDIAN


def draw(noise: str, n: int, trials: int, arm: int = 0) -> Samples:
    """Return rates of launches, shape (trials, n); the same for the same arguments."""
    return NOISES[noise](np.random.default_rng([n, arm]), (trials, n))


def cover_median(noise: str, n: int, trials: int = TRIALS) -> float:
    """Share of trials whose interval of the median holds the true one."""
    found = [median_interval(launches) for launches in draw(noise, n, trials)]
    return sum(one.low <= 1 <= one.high for one in found) / trials


def cover_paired(noise: str, n: int, trials: int = TRIALS) -> float:
    """Share of trials whose paired interval holds the true ratio; both launches of a pair drift alike."""
    drift = np.exp(0.3 * draw("normal", n, trials, arm=2))
    arms = (draw(noise, n, trials, arm) * drift for arm in (0, 1))
    found = [paired(dict(enumerate(a)), dict(enumerate(b))).interval for a, b in zip(*arms, strict=True)]
    return sum(one.low <= 1 <= one.high for one in found) / trials


def cover_ratio(noise: str, n: int, trials: int = TRIALS) -> float:
    """Share of trials whose bootstrap interval of the ratio of two medians holds the true one."""
    arms = (draw(noise, n, trials, arm) for arm in (0, 1))
    found = [ratio_interval(a, b) for a, b in zip(*arms, strict=True)]
    return sum(one.low <= 1 <= one.high for one in found) / trials


def false_verdicts(noise: str, n: int, ratio: float, trials: int = TRIALS) -> float:
    """Share of reports with at least one false verdict, each of COMPARISONS with the same true ratio and n pairs."""
    edge = 1 + MARGIN
    false = {ABOVE: ratio <= edge, BELOW: ratio >= 1 / edge, EQUIVALENT: not 1 / edge < ratio < edge}
    arms = [draw(noise, n, trials * COMPARISONS, arm).reshape(trials, COMPARISONS, n) for arm in (0, 1)]
    count = 0
    for a, b in zip(*arms, strict=True):
        ratios = [paired(dict(enumerate(ratio * x)), dict(enumerate(y))) for x, y in zip(a, b, strict=True)]
        count += any(false.get(verdict.word, False) for verdict in judge(ratios, MARGIN))
    return count / trials


def main() -> None:
    """Print the tables."""
    print("launches  noise      promised  median  paired  bootstrapped ratio")
    for n in (2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30):
        for noise in NOISES:
            covered = "   ".join(f"{cover(noise, n):.3f}" for cover in (cover_median, cover_paired, cover_ratio))
            print(f"{n:8d}  {noise:9s}     {confidence(n):.3f}   {covered}", flush=True)
    print(f"\npairs     noise      reports with a false verdict: true ratio 1, at the margin {1 + MARGIN}")
    for n in (MIN_PAIRS, 5, 10):
        for noise in NOISES:
            found = "   ".join(f"{false_verdicts(noise, n, ratio, 400):.3f}" for ratio in (1.0, 1 + MARGIN))
            print(f"{n:8d}  {noise:9s}  {found}", flush=True)


if __name__ == "__main__":
    main()
