"""The figure of the published corpus has every row once, by source, and can be read."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from bench.predict.published.corpus import Arm, Measure, Measurement
from bench.predict.published.score import Prediction
from bench.report import looks, published
from bench.report.saving import KINDS
from strategies.catalogue import CATALOGUE


def made(study: str, label: str, middle: float = 1.0, measure: Measure = "samples_per_s", **stated: str) -> Prediction:
    """A row measured as 1, predicted in a band of a tenth around `middle`."""
    arm = Arm(label, {"strategy": "ring_allreduce", **stated}, {})
    row = Measurement(study, "", "", arm, measure, 1.0, 0.0, None, None, "", {})
    return Prediction(row, 0.9 * middle, middle, 1.1 * middle, (), "", "")


def corpus() -> list[Prediction]:
    names = [f"a model of some length with {n} workers over many nodes" for n in range(20)]
    return [made(f"source-{s}", name, 1 + 0.05 * n) for s in range(4) for n, name in enumerate(names)]


def test_every_row_is_in_one_column_below_its_source_and_columns_are_of_like_height() -> None:
    columns = published.columns_of(corpus())
    assert len(columns) == published.COLUMNS
    shown = [line.prediction for sources in columns for source in sources for line in source[1:]]
    assert [each.row.label for each in shown if each] == [each.row.label for each in corpus()]
    assert [[source[0].text for source in sources] for sources in columns] == [
        [f"source-{s}: 3 of 20 in their band" for s in group] for group in ((0, 1), (2, 3))
    ]
    assert len(published.columns_of(corpus()[:5])) == 1


def test_colour_is_the_strategy_marker_the_placement_and_hollow_a_miss() -> None:
    servers = {"strategy": "parameter_server", "placement": "colocated"}
    figure = published.make_figure([made("s", "ring"), made("s", "servers", 3.0, **servers)])
    ring, missed = (line for line in figure.axes[0].lines if line.get_marker() != "None")
    assert (to_hex(ring.get_color()), ring.get_marker()) == (CATALOGUE["ring_allreduce"].colour, looks.MARKER)
    assert (to_hex(missed.get_color()), missed.get_marker()) == (
        CATALOGUE["parameter_server"].colour, looks.MARKERS["colocated"],
    )  # fmt: skip
    assert to_hex(missed.get_markerfacecolor()) == looks.PAPER != to_hex(ring.get_markerfacecolor())
    assert "1 of 2 measurements" in figure.get_suptitle()


@pytest.mark.parametrize(("measure", "ratio"), [("samples_per_s", 2.0), ("step_s", 0.5)])
def test_a_longer_step_is_a_slower_prediction(measure: Measure, ratio: float) -> None:
    assert published.over_measured(made("s", "r", measure=measure), 2.0) == ratio


def test_names_of_rows_are_on_the_page_and_do_not_touch(tmp_path: Path) -> None:
    figure = published.make_figure(corpus())
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = sorted((label.get_window_extent() for label in axes.get_yticklabels()), key=lambda box: box.y0)
        assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    files = published.write_folder(corpus()[:3], tmp_path)
    assert [path.suffix for path in files] == [".csv", ".md", *(f".{kind}" for kind in KINDS)]
    before = files[2].read_bytes()
    published.write_folder(corpus()[:3], tmp_path)
    assert files[2].read_bytes() == before
