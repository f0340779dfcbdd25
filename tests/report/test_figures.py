"""Every figure shows every ok cell, its labels and its ideal, with axes that mislead nobody."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from bench import records
from bench.records import RunRecord
from bench.report import bars, figures, labels, looks, panels, saving
from strategies.catalogue import CATALOGUE
from tests.support.drawing import curves_of, draw, summarize, words
from tests.support.synthetic import demo_records, make_failure, make_record, make_steps

BY_SETTING = ("throughput", "scaling_efficiency", "loss_against_time")


@pytest.fixture(scope="module")
def summary() -> pd.DataFrame:
    return summarize(*demo_records(repeats=2))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    folder = tmp_path_factory.mktemp("study")
    runs = demo_records(repeats=2)
    for run in runs:
        if run.summary is not None:
            records.write_steps(folder, run.run_id, make_steps(run))
    return draw(*runs, folder=folder)


def test_all_figures_are_described(drawn: dict[str, Figure]) -> None:
    assert list(drawn) == list(figures.DESCRIPTIONS)


def test_every_curve_is_named_in_its_panel_and_no_figure_but_that_of_phases_has_a_legend(
    drawn: dict[str, Figure],
) -> None:
    for name, figure in drawn.items():
        assert bool(figure.legends) == (name == "step_time")
        for axes in figure.axes if name != "step_time" else []:
            assert all(" ".join(label.split()) in words(axes) for label in curves_of(axes)), name


def test_each_figure_has_one_panel_per_precision_and_batch(drawn: dict[str, Figure]) -> None:
    for name in BY_SETTING:
        assert len({axes.get_title(loc="left") for axes in drawn[name].axes}) == len(drawn[name].axes) == 4


def test_settings_that_move_the_same_bytes_share_a_panel(drawn: dict[str, Figure]) -> None:
    assert len(drawn["communication_volume"].axes) == 2  # per worker and per server


def test_of_very_many_settings_those_with_the_most_cells_are_drawn_and_the_figure_says_so() -> None:
    sizes = {
        batch: (1, 2, 4) if batch == panels.MAX_PANELS + 2 else (1, 2) for batch in range(1, panels.MAX_PANELS + 3)
    }
    runs = [make_record(strategy="ddp", num_workers=n, batch_size=batch) for batch in sizes for n in sizes[batch]]
    figure = figures.throughput(looks.with_looks(figures.to_draw(summarize(*runs))))
    assert len(figure.axes) == panels.MAX_PANELS
    assert figure.axes[-1].get_title(loc="left").endswith(f"{max(sizes)} sequences per worker")
    assert f"of {len(sizes)} settings" in figure.get_suptitle()


def test_a_panel_of_single_points_is_not_drawn() -> None:
    runs = [make_record(strategy="ddp", num_workers=n, batch_size=batch) for n, batch in ((1, 4), (2, 4), (2, 8))]
    found = draw(*runs)
    assert "throughput" not in found  # the overview has it
    assert len(found["scaling_efficiency"].axes) == len(found["communication_volume"].axes) == 1


def test_a_strategy_has_one_colour_and_a_placement_one_marker_everywhere(drawn: dict[str, Figure]) -> None:
    looks_of = {entry.title: (entry.colour, looks.MARKER) for entry in CATALOGUE.values()}
    looks_of["1 server"] = (CATALOGUE["parameter_server"].colour, looks.MARKERS["dedicated"])
    seen = set()
    for figure in drawn.values():
        for axes in figure.axes:
            for label, line in curves_of(axes).items():
                name = label.split(",")[0].split(" · ")[0]
                if name in looks_of:
                    assert (to_hex(line.get_color()), line.get_marker()) == looks_of[name]
                    seen.add(name)
    assert seen == {"local", "1 server", "Horovod ring", "mpi4py ring", "PyTorch DDP"}


def test_who_has_no_loss_has_no_line(tmp_path: Path) -> None:
    trained, slept = (make_record(strategy=strategy, num_workers=2) for strategy in ("ddp", "ring_allreduce"))
    records.write_steps(tmp_path, trained.run_id, make_steps(trained))
    records.write_steps(tmp_path, slept.run_id, [replace(step, loss=None) for step in make_steps(slept)])
    figure = draw(trained, slept, folder=tmp_path)["loss_against_time"]
    assert list(curves_of(figure.axes[0])) == ["PyTorch DDP · 2"]
    figure.canvas.draw()


def test_emulated_nodes_come_first_and_share_no_line_with_one_machine() -> None:
    both = [
        make_record(strategy=strategy, num_workers=n, labels=(label,), tokens_per_s=rate * n, seed=seed)
        for strategy in ("ring_allreduce", "parameter_server")
        for n in (1, 2, 4)
        for label, rate, seed in (("loopback", 1000.0, 1), ("emulated", 10.0, 2))
    ]
    nodes = [run if "loopback" in run.labels else with_nodes(run) for run in both]
    found = draw(*nodes)
    first = found["overview"].axes[0]
    assert "emulated nodes" in first.get_title(loc="left")
    assert max(max(line.get_ydata()) for line in curves_of(first).values()) < 1000
    for name in ("throughput", "step_time"):
        titles = [axes.get_title(loc="left").split(",")[0] for axes in found[name].axes]
        assert titles == ["emulated nodes", "one machine"]
    assert [axes.get_xlabel() for axes in found["throughput"].axes] == ["emulated nodes", "ranks on one machine"]


def with_nodes(run: RunRecord) -> RunRecord:
    assert run.summary is not None
    return run.model_copy(update={"summary": run.summary.model_copy(update={"num_nodes": run.config.world_size})})


def test_axes_start_at_zero_or_are_logarithmic_and_have_units(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        for axes in figure.axes:
            if name == "step_time":
                assert axes.get_xlim()[0] == 0
            elif name != "loss_against_time" and axes.get_yscale() == "linear":  # a loss has no zero to compare with
                assert axes.get_ylim()[0] == 0
            assert axes.get_ylabel() or name == "step_time"  # whose rows have names
        assert figure.axes[-1].get_xlabel()


def test_scaling_is_drawn_on_log_axes_with_a_straight_ideal(drawn: dict[str, Figure]) -> None:
    for axes in [drawn["overview"].axes[0], *drawn["throughput"].axes, *drawn["strong_scaling"].axes]:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        x, y = labels.in_panel(axes, curves_of(axes)["ideal"]).T
        assert np.diff(y) / np.diff(x) == pytest.approx(np.full(len(x) - 1, (y[-1] - y[0]) / (x[-1] - x[0])))


def test_labels_are_written_on_every_panel(drawn: dict[str, Figure]) -> None:
    for name in BY_SETTING:
        for axes in drawn[name].axes:
            assert "few launches; loopback; oversubscribed at 4, 5 ranks" in words(axes)


def test_only_ok_cells_are_drawn(summary: pd.DataFrame, drawn: dict[str, Figure]) -> None:
    shown = bars.to_show(looks.with_looks(summary[summary["status"] == "ok"]))
    assert sum(len(axes.get_yticklabels()) for axes in drawn["step_time"].axes) == len(shown)


def test_sizes_are_ticks_unless_their_numbers_would_touch() -> None:
    axes = Figure().add_subplot()
    for sizes, ticks in (([2, 4, 8], [2, 4, 8]), ([1, 100, 101, 102], [1, 102]), ([4], [4])):
        panels.size_axis(axes, sizes)
        assert list(axes.get_xticks()) == ticks


def test_figures_without_numbers_are_left_out(tmp_path: Path) -> None:
    assert figures.write_figures(draw(make_failure("failed", "killed")), tmp_path) == []
    assert not {"communication_volume", "batch_size", "strong_scaling", "front"} & set(draw(make_record()))


def test_the_same_summary_gives_the_same_files(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert "step_time" in figures.write_figures(draw(make_record()), tmp_path / name)
        files = sorted((tmp_path / name / "figures").iterdir())
        contents.append({file.name: file.read_bytes() for file in files})
    assert contents[0] == contents[1]
    assert {name.split(".")[1] for name in contents[0]} == set(saving.KINDS)


def words_of(figure: Figure) -> list[Text]:
    """Titles, notes, names of curves, axis labels, tick labels of rows, and the legend."""
    found = [text for axes in figure.axes for text in axes.get_children() if isinstance(text, Text)]
    found += [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label)]
    found += [label for axes in figure.axes for label in axes.get_yticklabels() if "," in label.get_text()]  # of rows
    return found + [text for one in figure.legends for text in one.get_texts()]


LONG = "a.module.with_a_long_name:HierarchicalCompressedMomentumAllreduce"


@pytest.mark.parametrize(("sizes", "strategy"), [((16,), "mpi_ring"), ((1, 2, 512), LONG)])
def test_no_text_is_cut_off(sizes: tuple[int, ...], strategy: str) -> None:
    slept = {"compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2, "batch_size": 16}
    served = {"strategy": "parameter_server", "num_servers": 8, "data": "/a/long path/to/the corpus of all that is.bin"}
    runs = [
        make_record(num_workers=n, **way)
        for way in (
            served, {**served, "compression": "onebit"}, {"strategy": strategy},
            {**served, **slept, "labels": ("emulated", "oversubscribed", "loopback")},
        )
        for n in sizes
    ]  # fmt: skip
    for figure in draw(*runs).values():
        figure.draw_without_rendering()
        for text in words_of(figure):
            box = text.get_window_extent()
            assert not text.get_text() or (box.x0 >= 0 and box.x1 <= figure.bbox.x1), text.get_text()
            assert not text.get_text() or (box.y0 >= 0 and box.y1 <= figure.bbox.y1), text.get_text()


def test_a_dollar_in_a_path_is_no_formula(tmp_path: Path) -> None:
    runs = [make_record(strategy="ddp", num_workers=2, data=data) for data in ("$a.bin", "$HOME/{b}$_^.bin")]
    figures.write_figures({"overview": draw(*runs)["overview"]}, tmp_path)
    drawn = ElementTree.parse(tmp_path / "figures" / "overview.svg").getroot()
    assert any("$HOME/{b}$_^.bin" in (element.text or "") for element in drawn.iterfind(".//{*}text"))


def test_settings_of_the_user_change_no_figure(tmp_path: Path) -> None:
    contents = []
    for settings in ({}, {"lines.linewidth": 9, "axes.grid": True, "font.family": "serif", "savefig.bbox": "tight"}):
        with matplotlib.rc_context(settings):
            figures.write_figures({"overview": draw(make_record())["overview"]}, tmp_path)
        contents.append([path.read_bytes() for path in sorted((tmp_path / "figures").iterdir())])
    assert contents[0] == contents[1]
