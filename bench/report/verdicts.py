"""Whether one of two cells is faster: paired launches, a margin of practical equivalence, several comparisons at once.

Launches of the same repeat are paired, so that drift between repeats cancels. From 3 pairs on, the interval is the t
interval of the mean log ratio, which covers 95 % for log-normal noise; scripts/interval_coverage.py shows it for other
noise. Launches of two folders cannot be paired: their interval is that of Welch (1947). A ratio is above (or below) if
its interval lies beyond the margin, equivalent if it lies within the margin (two one-sided tests: Schuirmann, 1987).
Holm's step-down correction (1979) limits the chance of any false verdict among all comparisons of a table to 5 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from bench.config import BadInput
from bench.intervals import BLANK, CONFIDENCE, Estimate

MIN_PAIRS = 3
MARGIN = 0.02
FAMILY_ERROR = 1 - CONFIDENCE
ABOVE, BELOW, EQUIVALENT, UNDECIDED, NO_VERDICT = "above", "below", "equivalent", "undecided", "no verdict"


class Ratio(NamedTuple):
    """The ratio of two cells' tokens_per_s: mean and standard error of its logarithm, n launches, degrees of freedom.

    `n` counts pairs; of unpaired launches, those of the smaller side.
    """

    mean: float
    error: float
    n: int
    freedom: float
    is_paired: bool = True
    disturbance: float = 0.0  # by which share others may have slowed one of the cells

    @property
    def interval(self) -> Estimate:
        """The geometric mean with its 95 % t interval; with 2 pairs their range, with 1 no interval."""
        if self.n == 0:
            return BLANK
        range_only = self.is_paired and self.n < MIN_PAIRS
        width = self.error * (1 if range_only else stdtrit(self.freedom, (1 + CONFIDENCE) / 2))
        return Estimate(*(float(np.exp(self.mean + side)) for side in (0, -width, width)))

    def claim(self, margin: float) -> tuple[str, float]:
        """ABOVE, BELOW or EQUIVALENT, whichever the data support most, and its p-value (two-sided).

        A verdict must hold whatever the disturbance has done: faster by more than both, equivalent in spite of it.
        """
        beyond, within = (np.log1p(margin) + sign * np.log1p(self.disturbance) for sign in (1, -1))
        p = {
            ABOVE: self._p(self.mean - beyond),
            BELOW: self._p(-self.mean - beyond),
            EQUIVALENT: max(self._p(self.mean + within), self._p(within - self.mean)),
        }
        best = min(p, key=p.__getitem__)
        return best, min(1.0, 2 * p[best])

    def _p(self, distance: float) -> float:
        """One-sided p-value of the hypothesis that the true value of an estimated distance is 0 or less."""
        if self.error == 0:
            return 0.0 if distance > 0 else 1.0
        return float(stdtr(self.freedom, -distance / self.error))


class Verdict(NamedTuple):
    """ABOVE, BELOW, EQUIVALENT, UNDECIDED or NO_VERDICT, and Holm's adjusted p-value (NaN for NO_VERDICT)."""

    word: str
    p: float


def paired(numerator: Mapping[int, float], denominator: Mapping[int, float]) -> Ratio:
    """The ratio over the repeats that both have; both map a repeat to tokens_per_s."""
    common = sorted(numerator.keys() & denominator.keys())
    logs = np.log([numerator[repeat] / denominator[repeat] for repeat in common])
    n = len(common)
    error = float(np.std(logs, ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return Ratio(float(np.mean(logs)) if n else np.nan, error, n, n - 1)


def unpaired(numerator: Iterable[float], denominator: Iterable[float]) -> Ratio:
    """The ratio of launches that have nothing in common, with Welch's degrees of freedom."""
    sides = [np.log(np.sort(np.fromiter(rates, float))) for rates in (numerator, denominator)]
    n = min(map(len, sides))
    if n == 0:
        return Ratio(np.nan, np.nan, 0, np.nan, is_paired=False)
    mean = float(sides[0].mean() - sides[1].mean())
    if n == 1:
        return Ratio(mean, np.nan, 1, np.nan, is_paired=False)
    parts = [float(side.var(ddof=1)) / len(side) for side in sides]
    total = sum(parts)
    squares = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    return Ratio(mean, float(np.sqrt(total)), n, total**2 / squares if squares else n - 1, is_paired=False)


def ratio_of(numerator: Mapping[int, float], denominator: Mapping[int, float]) -> Ratio:
    """The paired ratio; that of unpaired launches if no repeat is common."""
    found = paired(numerator, denominator)
    return found if found.n else unpaired(numerator.values(), denominator.values())


def judge(ratios: Sequence[Ratio], margin: float) -> list[Verdict]:
    """A verdict per ratio, corrected for their number; ratios of fewer than MIN_PAIRS pairs get NO_VERDICT."""
    claims = [ratio.claim(margin) if ratio.n >= MIN_PAIRS else (NO_VERDICT, np.nan) for ratio in ratios]
    adjusted = holm([p for _, p in claims])
    words = [claim if claim == NO_VERDICT or p <= FAMILY_ERROR else UNDECIDED
             for (claim, _), p in zip(claims, adjusted, strict=True)]  # fmt: skip
    return [Verdict(word, p) for word, p in zip(words, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values; NaN stays NaN and is not counted."""
    order = [place for place in np.argsort(p_values) if not np.isnan(p_values[place])]
    adjusted, largest = [np.nan] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def share_of(text: str, flag: str) -> float:
    """'5%' or '0.05' as 0.05; BadInput naming the flag for anything that is not a share from 0 to below 1."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise BadInput(f"{flag} {text}: not a share; write 5% or 0.05")
    return share
