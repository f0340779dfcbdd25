"""Every figure shows every ok cell, its labels and its ideal, with axes that mislead nobody."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bench import figures, records, stats
from bench.records import RunRecord
from tests.synthetic import demo_records, make_failure, make_record


def summarize(*runs: RunRecord) -> pd.DataFrame:
    return stats.summarize(records.frame(runs))


@pytest.fixture(scope="module")
def summary() -> pd.DataFrame:
    return summarize(*demo_records(repeats=2))


@pytest.fixture(scope="module")
def drawn(summary: pd.DataFrame) -> dict[str, Figure]:
    return figures.make_figures(summary)


def colours(axes: Axes) -> dict[str, str]:
    handles, labels = axes.get_legend_handles_labels()
    lines = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
    return {label: to_hex(line.get_color()) for label, line in zip(labels, lines, strict=True)}


def test_all_four_figures_are_described(drawn: dict[str, Figure]) -> None:
    assert list(drawn) == list(figures.DESCRIPTIONS)


def test_each_figure_has_one_panel_per_precision_and_batch(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        titles = [axes.get_title(loc="left") for axes in figure.axes]
        assert len(set(titles)) == 4
        assert len(titles) == (8 if name == "communication_volume" else 4)  # per worker and per server


def test_a_strategy_has_one_colour_everywhere(drawn: dict[str, Figure]) -> None:
    for name in ("throughput", "scaling_efficiency", "communication_volume"):
        for axes in drawn[name].axes:
            for label, colour in colours(axes).items():
                for strategy, text in figures.NAMES.items():
                    if label.split(",")[0] == text:
                        assert colour == figures.COLOURS[strategy]


def test_axes_start_at_zero_and_have_units(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        for axes in figure.axes:
            assert (axes.get_xlim() if name == "step_time" else axes.get_ylim())[0] == 0
            assert axes.get_xlabel()
            assert axes.get_ylabel()


def test_scaling_plots_show_the_ideal(drawn: dict[str, Figure]) -> None:
    for name in ("throughput", "scaling_efficiency"):
        for axes in drawn[name].axes:
            assert any(label.startswith("ideal") for label in colours(axes))


def test_labels_are_written_on_every_panel(drawn: dict[str, Figure]) -> None:
    for figure in drawn.values():
        for axes in figure.axes:
            assert [text.get_text() for text in axes.texts] == ["few launches; loopback; oversubscribed at 4 workers"]


def test_only_ok_cells_are_drawn(summary: pd.DataFrame, drawn: dict[str, Figure]) -> None:
    bars = sum(len(axes.get_yticklabels()) for axes in drawn["step_time"].axes)
    assert bars == (summary["status"] == "ok").sum()


def test_what_varies_tells_curves_apart() -> None:
    table = summarize(
        make_record(),
        make_record(strategy="parameter_server", num_workers=2),
        make_record(strategy="parameter_server", num_workers=2, num_servers=2, wire_dtype="fp16"),
        make_record(strategy="ring_allreduce", num_workers=2, wire_dtype="fp16", launcher="horovodrun"),
    )
    names = [label for label, _, _ in figures.curves(table, table)]
    assert len(set(names)) == len(names)
    assert "local" in names  # a strategy that sends nothing is not named by its wire
    assert "ring-allreduce, horovodrun, fp16 wire" in names
    assert "parameter server, 2 servers, mpirun, fp16 wire" in names


def test_wide_ranges_of_workers_double_by_equal_steps() -> None:
    narrow, wide = (
        figures.make_figures(summarize(*(make_record(strategy="ddp", num_workers=n) for n in sizes)))
        for sizes in ([1, 2, 4], [1, 2, 4, 8])
    )
    assert narrow["throughput"].axes[0].get_xscale() == "linear"
    assert wide["throughput"].axes[0].get_xscale() == "log"
    assert list(wide["throughput"].axes[0].get_xticks()) == [1, 2, 4, 8]


def test_error_bars_need_more_than_one_launch() -> None:
    for repeats in (1, 3):
        runs = [make_record(repeat=r, tokens_per_s=100.0 + r) for r in range(repeats)]
        axes = figures.make_figures(summarize(*runs))["throughput"].axes[0]
        spread = [segment for bars in axes.collections for segment in bars.get_segments()]
        heights = [segment[1][1] - segment[0][1] for segment in spread]
        assert (max(heights) > 0) == (repeats > 1)


def test_figures_without_numbers_are_left_out(tmp_path: Path) -> None:
    assert figures.write_figures(summarize(make_failure("failed", "killed")), tmp_path) == []
    assert "communication_volume" not in figures.make_figures(summarize(make_record()))


def test_the_same_summary_gives_the_same_files(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert "throughput" in figures.write_figures(summarize(make_record()), tmp_path / name)
        files = sorted((tmp_path / name / "figures").iterdir())
        contents.append({file.name: file.read_bytes() for file in files})
    assert contents[0] == contents[1]
    assert {name.split(".")[1] for name in contents[0]} == set(figures.KINDS)
