"""The bars of a step's phases stay few, and their names can be read."""

from __future__ import annotations

import itertools

from bench.report import bars
from tests.support.drawing import draw, words
from tests.support.synthetic import make_record


def test_many_cells_keep_the_step_time_figure_short_and_the_largest_of_each_curve_in_it() -> None:
    few, many = (
        draw(
            *(make_record(strategy=strategy, num_workers=n) for strategy in ("ddp", "mpi_ring") for n in range(1, most))
        )
        for most in (3, bars.MAX_BARS)
    )
    assert [label.get_text() for label in few["step_time"].axes[0].get_yticklabels()][1::2] == ["2", "2"]
    names = [label.get_text() for label in many["step_time"].axes[0].get_yticklabels()]
    assert names == [f"{name}, {bars.MAX_BARS - 1} ranks" for name in ("mpi4py ring", "PyTorch DDP")]
    assert f"of {2 * (bars.MAX_BARS - 1)} cells" in words(many["step_time"].axes[0])


def test_names_of_bars_do_not_touch_each_other() -> None:
    ways = [{"num_servers": n, "data": "/a/long/path/to/the corpus of all.bin"} for n in (1, 2, 4)]
    runs = [make_record(strategy="parameter_server", num_workers=4, **way) for way in ways]
    runs += [make_record(strategy="parameter_server", num_workers=4, num_servers=1)]
    figure = draw(*runs)["step_time"]
    figure.draw_without_rendering()
    boxes = sorted((label.get_window_extent() for label in figure.axes[0].get_yticklabels()), key=lambda box: box.y0)
    assert len(boxes) == len(runs)
    assert any("\n" in label.get_text() for label in figure.axes[0].get_yticklabels())
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))
