"""Laws of link rates and delays: positive, bounded, or refused on one line."""

from __future__ import annotations

import pytest

from bench.config import BadInput
from bench.links import parse_delay, parse_rate

HUGE = "9" * 400


def test_rates_and_delays_are_read() -> None:
    assert [parse_rate(text) for text in ("500kbit", "200mbit", "2.5gbit")] == [500_000, 200_000_000, 2_500_000_000]
    assert [parse_delay(text) for text in ("0us", "500us", "2ms", "1s")] == [0.0, 0.0005, 0.002, 1.0]


@pytest.mark.parametrize(
    "text", ["0mbit", "0.5kbit", "9" * 400 + "gbit", "99999gbit", "-1gbit", "1 gbit/s", "٣gbit", "nan", ""]
)
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"^link: .* is not a rate") as refusal:
        parse_rate(text)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("text", ["11s", HUGE + "us", "-1ms", "inf", "1m", ""])
def test_other_delays_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"^delay: .* is not a time"):
        parse_delay(text)
