"""The first figure: speeds and ratios as curves or rows, with what weakens them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bench.report import looks, overview
from tests.support.drawing import draw_overview, words
from tests.support.synthetic import make_record, make_rejected


def test_cells_of_one_size_are_rows_with_every_comparison() -> None:
    served: dict[str, Any] = {"strategy": "parameter_server", "num_workers": 2}
    ways = ({"num_servers": 1}, {"placement": "colocated", "num_servers": 0})
    runs = [make_record(strategy="ring_allreduce", num_workers=2), *(make_record(**served, **way) for way in ways)]
    speeds, ratios = draw_overview(*runs)
    assert {label.get_text() for label in speeds.get_yticklabels()} == {
        "Horovod ring, 2 ranks", "colocated servers, 2\nranks", "1 server, 3 ranks",
    }  # fmt: skip
    assert len(ratios.get_yticklabels()) == 2


def test_where_only_equal_workers_were_compared_at_several_sizes_workers_are_the_axis() -> None:
    served: dict[str, Any] = {"strategy": "parameter_server"}
    for servers, size in (([1, 2, 4], "workers"), ([1, 3], "ranks on one machine")):
        arms = [make_record(strategy="ring_allreduce", num_workers=n) for n in (1, 2, 4)]
        panels_drawn = draw_overview(*arms, *(make_record(**served, num_workers=n) for n in servers))
        assert [axes.get_xlabel() for axes in panels_drawn] == [size, size]


@pytest.mark.parametrize("high", [1.01, 1.2, 4.0, 60.0])
def test_three_percent_can_be_seen_on_the_axis_of_ratios(high: float) -> None:
    axes = Figure().add_subplot()
    overview.ratio_axis(axes, 0.99, high)
    heights = axes.transLimits.transform(axes.transScale.transform([(0, ratio) for ratio in (1.0, 1.03, high)]))[:, 1]
    assert heights[1] - heights[0] > 0.1
    assert 0 < heights[0] < heights[2] < 1
    assert 1 in axes.get_yticks()


def test_invalid_rows_are_in_no_figure() -> None:
    good = make_record(strategy="ddp", num_workers=2, tokens_per_s=100.0)
    bad = make_record(strategy="ddp", num_workers=4, tokens_per_s=9e9).model_copy(
        update={"status": "invalid", "reason": "the machine was the bottleneck"}
    )
    axes = draw_overview(good, bad)[0]
    assert all(np.nanmax(line.get_xdata()) < 9e9 for line in axes.lines if np.isfinite(line.get_xdata()).any())


def test_a_cell_whose_launches_were_all_rejected_is_hollow_and_says_by_how_much_it_was_disturbed() -> None:
    slow: dict[str, Any] = {"strategy": "parameter_server", "link": "200mbit", "labels": ("emulated",)}
    rings = [make_record(**{**slow, "strategy": "mpi_ring"}, num_workers=n, tokens_per_s=90.0 * n) for n in (2, 3, 4)]
    servers = [make_record(**slow, num_workers=1, tokens_per_s=50.0), make_rejected(60.0, 0.07, **slow, num_workers=3)]
    speeds, ratios = draw_overview(*rings, *servers)
    hollow = next(line for line in speeds.lines if line.get_label() == "_1 server" and line.get_marker() == "s")
    assert list(hollow.get_xydata()[0]) == [4, 60.0]
    assert to_hex(hollow.get_markerfacecolor()) == looks.PAPER
    assert "hollow: disturbed by up to 7.0%" in words(speeds)
    assert any(line.get_label() == "_1 server" and line.get_marker() == "s" for line in ratios.lines)


def test_error_bars_need_more_than_one_launch() -> None:
    for repeats in (1, 3):
        runs = [
            make_record(repeat=r, strategy="ddp", num_workers=n, tokens_per_s=100.0 + r)
            for r in range(repeats)
            for n in (1, 2)
        ]
        lines = {str(line.get_label()): line for line in draw_overview(*runs)[0].lines}
        low, high, _ = lines["_PyTorch DDP"].get_ydata()[:3]
        assert (high - low == repeats - 1) if repeats > 1 else np.isnan([low, high]).all()
