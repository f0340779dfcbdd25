"""Names beside curves can be read, and coinciding curves are both seen."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bench.report import labels
from tests.support.drawing import curves_of, draw_overview
from tests.support.synthetic import make_record


def test_coinciding_curves_are_both_seen() -> None:
    apart, equal = (
        draw_overview(*(make_record(strategy=strategy, num_workers=n, tokens_per_s=rate * n)
               for strategy, rate in (("ring_allreduce", 100.0), ("mpi_ring", rate_of_other)) for n in (1, 2, 4)))
        for rate_of_other in (200.0, 101.0)
    )  # fmt: skip
    for (axes, *_), separated in ((apart, False), (equal, True)):
        lines = [line for label, line in curves_of(axes).items() if label != "ideal"]
        places = [line.get_transform().transform(line.get_xydata())[0][0] for line in lines]
        assert len(lines) == 2
        assert (abs(places[0] - places[1]) > 2) == separated
        assert (len({line.is_dashed() for line in lines}) == 2) == separated


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.08)), min_size=1, max_size=12))
def test_names_beside_curves_never_cover_each_other(wanted: list[tuple[float, float]]) -> None:
    ys, heights = zip(*wanted, strict=True)
    placed = sorted(zip(labels.spread_out(ys, heights), heights, strict=True))
    for (low, height), (high, other) in itertools.pairwise(placed):
        assert high - low >= (height + other) / 2 - 1e-9
