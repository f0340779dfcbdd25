"""How often an interval covers the truth: simulated launches whose median is known.

    python scripts/interval_coverage.py

One line per number of launches and kind of noise: the share of trials in which the interval of a median, of a paired
ratio and of a bootstrapped ratio covered the true value, beside what `confidence` promises.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bench.intervals import confidence, median_interval, paired_interval, ratio_interval

Samples = npt.NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, ...]], Samples]

TRIALS = 4000
# Rates with median 1: symmetric, skewed, and with the long tail of a machine that is sometimes disturbed.
NOISES: dict[str, Noise] = {
    "normal": lambda rng, shape: 1 + 0.05 * rng.standard_normal(shape),
    "lognormal": lambda rng, shape: np.exp(0.2 * rng.standard_normal(shape)),
    "slow tail": lambda rng, shape: (1 + 0.1 * math.log(2)) / (1 + 0.1 * rng.exponential(size=shape)),
}


def draw(noise: str, n: int, trials: int, arm: int = 0) -> Samples:
    """Launches of many trials, shape (trials, n); the same for the same arguments."""
    return NOISES[noise](np.random.default_rng([n, arm]), (trials, n))


def cover_median(noise: str, n: int, trials: int = TRIALS) -> float:
    """Share of trials whose interval of the median holds the true one."""
    found = [median_interval(launches) for launches in draw(noise, n, trials)]
    return sum(one.low <= 1 <= one.high for one in found) / trials


def cover_paired(noise: str, n: int, trials: int = TRIALS) -> float:
    """The same of the median ratio of pairs; both of a pair drift alike."""
    drift = np.exp(0.3 * draw("normal", n, trials, arm=2))
    arms = (draw(noise, n, trials, arm) * drift for arm in (0, 1))
    found = [paired_interval(dict(enumerate(a)), dict(enumerate(b)))[0] for a, b in zip(*arms, strict=True)]
    return sum(one.low <= 1 <= one.high for one in found) / trials


def cover_ratio(noise: str, n: int, trials: int = TRIALS) -> float:
    """The same of the bootstrapped ratio of two medians."""
    arms = (draw(noise, n, trials, arm) for arm in (0, 1))
    found = [ratio_interval(a, b) for a, b in zip(*arms, strict=True)]
    return sum(one.low <= 1 <= one.high for one in found) / trials


def main() -> None:
    """Print the table."""
    print("launches  noise      promised  median  paired  bootstrapped ratio")
    for n in (2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30):
        for noise in NOISES:
            covered = "   ".join(f"{cover(noise, n):.3f}" for cover in (cover_median, cover_paired, cover_ratio))
            print(f"{n:8d}  {noise:9s}     {confidence(n):.3f}   {covered}", flush=True)


if __name__ == "__main__":
    main()
