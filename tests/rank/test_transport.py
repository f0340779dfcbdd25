"""What links and hosts cost: the arithmetic of the measurements, without ranks."""

from __future__ import annotations

import pytest

from bench.durations import Calibration
from bench.rank.calibrate_all import WORDS, describe
from bench.rank.transport import _split, measure_host
from bench.shape import PRESETS


@pytest.mark.parametrize(("per_message", "per_byte"), [(5e-6, 1e-9), (0.0, 2e-9), (3e-5, 0.0)])
def test_the_cost_of_a_message_is_told_from_that_of_its_bytes(per_message: float, per_byte: float) -> None:
    rows = [(per_message * messages + per_byte * 8e6, messages, 8e6) for messages in (2000.0, 140.0)]
    assert _split(rows) == pytest.approx((per_message, per_byte), abs=1e-12)


def test_costs_are_never_negative() -> None:
    assert _split([(1e-3, 1000.0, 8e6), (2e-3, 100.0, 8e6)])[0] == 0


def test_a_host_adds_and_copies_at_a_measured_rate() -> None:
    for name, found in measure_host().items():
        assert 0 < found.low <= found.value <= found.high < 1e-6, name


def test_every_measured_number_is_printed_with_its_interval() -> None:
    measured = {name: 1e-6 for name, *_ in WORDS}
    found = Calibration(
        shape=PRESETS["gpt-nano"], batch_size=8, gradient_accumulation=1, precision="fp32", num_threads=1,
        optimizer="adamw", measured_on="a CPU", steps=3, forward_s={"wte": 0.25}, backward_s={"wte": 0.5},
        optimizer_s=0.125, intervals={"forward_s": (0.2, 0.3)},
        cluster={**measured, "intervals": dict.fromkeys(measured, (5e-07, 2e-06)), "source": "here"},
    )  # fmt: skip
    lines = describe(found)
    assert [line for line in lines if "[" in line] == lines[1:2] + lines[-len(WORDS) :]
    assert "250 ms  [200, 300]" in lines[1]
    alone = describe(found.model_copy(update={"cluster": {}}))
    assert "no link was measured" in alone[-1]
