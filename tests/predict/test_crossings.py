"""Where curves cross: at the place where two known curves are equal, and nowhere if neither is clearly ahead."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.config import make_config
from bench.predict import crossings
from bench.predict.cell import Cell
from bench.predict.crossings import LINK, MARGIN, NODES, Rated
from bench.predict.measured import Measured


def rated(strategy: str, nodes: int, measured: float, predicted: float, **knobs: object) -> Rated:
    """A cell with these tokens per second."""
    config = make_config({"strategy": strategy, "model": "gpt-micro", "num_workers": nodes, "link": "200mbit",
                          "compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2, **knobs},
                         "test")  # fmt: skip
    seconds = (config.tokens_per_step / measured,)
    return Rated(Measured(strategy, Cell(config), seconds, None, 0.3, 0.0, 0.0, 0.0), predicted)


def test_curves_cross_where_they_are_equal() -> None:
    """One is flat, one grows like the axis: they are equal at 4 as measured, at 8 as predicted."""
    points = [rated("ddp", n, measured=100.0 * n, predicted=100.0 * n) for n in (2, 16)]
    points += [rated("mpi_ring", n, measured=400.0, predicted=800.0) for n in (2, 16)]
    (found,) = crossings.crossings(points)
    assert (found.axis, found.between) == (NODES, (2, 16))
    assert [found.measured, found.predicted] == pytest.approx([4, 8])
    assert found.error == pytest.approx(1.0)
    assert "error 100.0% in the mean" in crossings.as_text([found])[0]


def test_curves_cross_over_links() -> None:
    points = [rated("ddp", 4, r, r, link=f"{r}mbit") for r in (100, 900)]
    points += [rated("mpi_ring", 4, 300, 300, link=f"{r}mbit") for r in (100, 900)]
    (found,) = crossings.crossings(points)
    assert found.axis == LINK
    assert [found.measured, found.error] == pytest.approx([300, 0])


def test_a_crossing_that_only_one_side_has_is_named() -> None:
    def found(measured: float, predicted: float) -> list[crossings.Crossing]:
        points = [rated("ddp", n, 100 * n, 100 * n) for n in (2, 8)]
        return crossings.crossings(points + [rated("mpi_ring", n, measured, predicted) for n in (2, 8)])

    assert [(one.measured is None, one.predicted is None) for one in found(400, 1000)] == [(False, True)]
    assert "1 not predicted" in crossings.as_text(found(400, 1000))[0]
    assert [(one.measured is None, one.predicted is None) for one in found(1000, 400)] == [(True, False)]
    assert "1 predicted but not measured" in crossings.as_text(found(1000, 400))[0]
    assert found(1000, 1000) == []
    assert "no two strategies change places" in crossings.as_text([])[0]


def test_unequal_work_or_links_have_no_crossing() -> None:
    points = [rated("ddp", n, 100 * n, 100 * n) for n in (2, 8)]
    for knobs in ({"batch_size": 16}, {"link": "1gbit"}, {"wire_dtype": "fp16"}):
        assert crossings.crossings(points + [rated("mpi_ring", n, 400, 400, **knobs) for n in (2, 8)]) == []


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_every_change_of_order_beyond_the_margin_is_one_crossing(logs: list[float]) -> None:
    places = [2.0**i for i in range(len(logs))]
    clear = [value > 0 for value in logs if abs(value) > crossings.log_margin()]
    found = crossings.zeros(places, logs)
    assert len(found) == sum(a != b for a, b in pairwise(clear))
    assert found == sorted(found)
    assert all(places[0] <= place <= places[-1] for place in found)


def test_a_lead_within_the_margin_is_none() -> None:
    within = MARGIN / 2
    assert crossings.zeros([1, 2, 4], [within, -within, within]) == []
    assert crossings.zeros([1, 2, 4], [-0.5, within, 0.5]) == [pytest.approx(1.97, abs=0.02)]
