"""Verdicts keep their promises: coverage, margin, number of comparisons, and the symmetry of both arms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bench.config import BadInput
from bench.report.verdicts import (
    ABOVE,
    BELOW,
    EQUIVALENT,
    MARGIN,
    MIN_PAIRS,
    NO_VERDICT,
    UNDECIDED,
    holm,
    judge,
    paired,
    ratio_of,
    share_of,
    unpaired,
)  # fmt: skip
from scripts.interval_coverage import NOISES, cover_one_sided, cover_paired, cover_unpaired, false_verdicts

rates = st.floats(min_value=1.0, max_value=1e6)
by_repeat = st.dictionaries(st.integers(0, 9), rates, min_size=2)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def arms(*ratios: float) -> tuple[dict[int, float], dict[int, float]]:
    return {r: 100 * ratio for r, ratio in enumerate(ratios)}, dict.fromkeys(range(len(ratios)), 100.0)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.10, 1.11, 1.12], ABOVE),
        ([0.90, 0.91, 0.92], BELOW),
        ([1.000, 1.001, 1.002], EQUIVALENT),
        ([1.01, 1.01, 1.01], EQUIVALENT),
        ([1.03, 1.031, 1.03], ABOVE),
        ([1.0, 1.1, 1.2], UNDECIDED),
        ([3.0, 3.0], NO_VERDICT),
        ([3.0], NO_VERDICT),
    ],
)
def test_a_verdict_follows_from_ratio_and_spread(ratios: list[float], verdict: str) -> None:
    assert judge([paired(*arms(*ratios))], 0.02)[0].word == verdict
    turned = {ABOVE: BELOW, BELOW: ABOVE}.get(verdict, verdict)
    assert judge([paired(*reversed(arms(*ratios)))], 0.02)[0].word == turned


@given(by_repeat, by_repeat, st.floats(0, 0.5))
def test_a_verdict_agrees_with_the_interval_and_the_margin(
    a: dict[int, float], b: dict[int, float], margin: float
) -> None:
    ratio = paired(a, b)
    assume(ratio.n >= MIN_PAIRS)
    _, low, high = ratio.interval
    word = judge([ratio], margin)[0].word
    edge = 1 + margin
    assert word != ABOVE or low > edge * (1 - 1e-9)
    assert word != BELOW or high < 1 / edge * (1 + 1e-9)
    assert word != EQUIVALENT or (low > 1 / edge * (1 - 1e-9) and high < edge * (1 + 1e-9))


@given(by_repeat, by_repeat)
def test_swapping_the_arms_inverts_the_interval(a: dict[int, float], b: dict[int, float]) -> None:
    there, back = paired(a, b), paired(b, a)
    ratio, low, high = there.interval
    assert there.n == back.n == len(a.keys() & b.keys())
    inverted = (1 / back.interval.value, 1 / back.interval.high, 1 / back.interval.low)
    assert (ratio, low, high) == pytest.approx(inverted, nan_ok=True)


@given(st.dictionaries(st.integers(0, 9), st.floats(0.01, 100), min_size=2), st.floats(0.1, 10))
def test_drift_that_hits_both_launches_of_a_pair_cancels(drift: dict[int, float], ratio: float) -> None:
    found = paired({r: ratio * 7 * d for r, d in drift.items()}, {r: 7 * d for r, d in drift.items()})
    assert found.interval == pytest.approx((ratio, ratio, ratio))


def test_the_interval_is_the_t_interval_of_scipy_and_below_3_pairs_the_range() -> None:
    ratios = [1.0, 1.3, 0.9, 1.2]
    logs = np.log(ratios)
    low, high = scipy_stats.t.interval(0.95, 3, np.mean(logs), scipy_stats.sem(logs))
    assert paired(*arms(*ratios)).interval == pytest.approx((np.exp(np.mean(logs)), np.exp(low), np.exp(high)))
    assert paired(*arms(1.0, 1.21)).interval == pytest.approx((1.1, 1.0, 1.21))
    assert np.isnan(paired(*arms(1.0)).interval[1:]).all()
    assert np.isnan(paired({}, {}).interval).all()


@given(p_values)
def test_holm_is_between_the_raw_p_value_and_bonferroni_and_keeps_the_order(found: list[float]) -> None:
    adjusted = holm(found)
    for p, q in zip(found, adjusted, strict=True):
        assert p <= q <= min(1, len(found) * p) + 1e-12
    assert [adjusted[place] for place in np.argsort(found)] == sorted(adjusted)


def test_holm_is_that_of_its_paper_and_does_not_count_blanks() -> None:
    assert holm([0.01, np.nan, 0.04, 0.03]) == pytest.approx([0.03, np.nan, 0.06, 0.06], nan_ok=True)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("n", [3, 6])
def test_the_intervals_of_a_ratio_cover_what_they_promise(noise: str, n: int) -> None:
    """With 95 % promised; gross disturbances of both sides make the intervals too wide, of one side too narrow."""
    assert 0.93 <= cover_paired(noise, n, 1500) <= (0.99 if noise == "disturbed" else 0.972)
    assert 0.93 <= cover_unpaired(noise, n, 1500) <= 0.99
    assert (cover_one_sided(noise, n, 1500) >= 0.925) == (noise != "disturbed")


@given(by_repeat, by_repeat)
def test_unpaired_launches_have_the_interval_of_welch(a: dict[int, float], b: dict[int, float]) -> None:
    logs = [np.log(list(side.values())) for side in (a, b)]
    assume(min(np.ptp(side) for side in logs) > 1e-3)
    theirs = scipy_stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    _, low, high = unpaired(a.values(), b.values()).interval
    assert np.log([low, high]) == pytest.approx([theirs.low, theirs.high])


def test_launches_of_different_repeats_are_unpaired() -> None:
    a, b = {0: 100.0, 1: 110.0}, {2: 50.0, 3: 50.0}
    assert ratio_of(a, b) == unpaired(a.values(), b.values())
    assert ratio_of(a, {0: 50.0, 3: 50.0}) == paired(a, {0: 50.0})
    assert np.isnan(unpaired([1.0], [2.0, 3.0]).interval[1:]).all()
    assert np.isnan(unpaired([], [2.0]).interval).all()


@pytest.mark.parametrize("ratio", [1.0, 1 + MARGIN])
def test_a_report_has_a_false_verdict_in_at_most_5_percent(ratio: float) -> None:
    for noise in NOISES:
        assert false_verdicts(noise, 3, ratio, 400) <= 0.08  # 5 % and 3 standard errors


def test_a_share_is_percent_or_fraction() -> None:
    assert share_of("5%", "--margin") == share_of("0.05", "--margin") == 0.05
    for text in ("much", "200%", "-1"):
        with pytest.raises(BadInput, match=f"--margin {text}: not a share; write 5% or 0.05"):
            share_of(text, "--margin")
