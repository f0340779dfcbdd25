"""Intervals cover what they say they cover, agree with scipy and closed forms, and mind no order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bench.intervals import _coverage, confidence, median_interval
from scripts.interval_coverage import NOISES, cover_median

rates = st.floats(min_value=1.0, max_value=1e6)
launches = st.lists(rates, min_size=2, max_size=12)


@given(launches)
def test_an_interval_contains_its_median_and_stays_within_the_samples(values: list[float]) -> None:
    value, low, high = median_interval(values)
    assert min(values) <= low <= value <= high <= max(values)


@given(st.lists(rates, min_size=2, max_size=40, unique=True))
def test_an_interval_lies_between_the_order_statistics_of_the_sign_test(values: list[float]) -> None:
    """Scipy inverts the sign test without interpolation: one order statistic wider or narrower on either side."""
    _, low, high = median_interval(values)
    ordered = sorted(values)
    n = len(values)
    exact = scipy_stats.quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
    if n < 6:
        assert (low, high) == (ordered[0], ordered[-1])
        return
    assert exact.low <= low
    assert high <= exact.high
    depth = ordered.index(exact.low)
    assert low <= ordered[depth + 1]
    assert high >= ordered[n - depth - 2]


@given(st.integers(2, 60), st.data())
def test_the_coverage_of_order_statistics_is_the_binomial_of_scipy(n: int, data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, n // 2))
    assert _coverage(n, depth) == pytest.approx(1 - 2 * scipy_stats.binom.cdf(depth - 1, n, 0.5))


@given(st.integers(2, 100))
def test_confidence_is_that_of_the_whole_range_until_95_percent(n: int) -> None:
    assert confidence(n) == pytest.approx(min(0.95, 1 - 2.0 ** (1 - n)))


@given(rates, st.integers(2, 8))
def test_constant_launches_have_a_point_as_interval(rate: float, n: int) -> None:
    assert median_interval([rate] * n) == (rate, rate, rate)


@given(st.lists(rates, min_size=2, max_size=8).flatmap(lambda xs: st.tuples(st.just(xs), st.permutations(xs))))
def test_the_order_of_launches_moves_nothing(both: tuple[list[float], list[float]]) -> None:
    assert median_interval(both[0]) == median_interval(both[1])


def test_one_launch_has_no_spread() -> None:
    assert np.isnan([*median_interval([3.0])[1:], confidence(1)]).all()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("n", [5, 6, 7, 9, 10, 20])
def test_95_percent_intervals_cover_the_median_93_to_97_times_in_100(noise: str, n: int) -> None:
    assert 0.93 <= cover_median(noise, n) <= 0.97


@pytest.mark.parametrize("n", [2, 3, 4])
def test_fewer_launches_cover_what_confidence_says(n: int) -> None:
    for noise in NOISES:
        assert cover_median(noise, n) == pytest.approx(confidence(n), abs=0.02)
