"""Every figure shows every ok cell, its labels and its ideal, with axes that mislead nobody."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from bench import records
from bench.records import RunRecord
from bench.report import bars, cells, duels, figures, labels, looks, loss, overview, panels
from strategies.catalogue import CATALOGUE
from tests.support.synthetic import demo_records, make_failure, make_record, make_rejected, make_steps

BY_SETTING = ("throughput", "scaling_efficiency", "loss_against_time")


def summarize(*runs: RunRecord) -> pd.DataFrame:
    return cells.summarize(records.frame(runs))


def draw(*runs: RunRecord, folder: Path = Path("nowhere")) -> dict[str, Figure]:
    table = records.frame(runs)
    lines = loss.read(folder, table)
    summary = loss.add_costs(cells.summarize(table), table, lines)
    return figures.make_figures(summary, duels.duels(table), lines)


def draw_overview(*runs: RunRecord) -> list[Axes]:
    """The panels of the first figure alone."""
    table = records.frame(runs)
    return overview.overview(looks.with_looks(figures.to_draw(cells.summarize(table))), duels.duels(table), 0.02).axes


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


def curves_of(axes: Axes) -> dict[str, Line2D]:
    """The named curves of a panel."""
    return {str(line.get_label()): line for line in labels.named_lines(axes)}


def words(axes: Axes) -> str:
    """All that is written in a panel, in one line."""
    return " ".join(" ".join(text.get_text() for text in axes.texts).split())


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


def test_cells_of_one_size_are_rows_with_every_comparison() -> None:
    served: dict[str, Any] = {"strategy": "parameter_server", "num_workers": 2}
    ways = ({"num_servers": 1}, {"placement": "colocated", "num_servers": 0})
    runs = [make_record(strategy="ring_allreduce", num_workers=2), *(make_record(**served, **way) for way in ways)]
    speeds, ratios = draw_overview(*runs)
    assert {label.get_text() for label in speeds.get_yticklabels()} == {
        "Horovod ring, 2 ranks", "colocated servers, 2\nranks", "1 server, 3 ranks",
    }  # fmt: skip
    assert len(ratios.get_yticklabels()) == 2


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


def test_a_server_per_worker_is_one_curve() -> None:
    sizes = [(2, 1), (4, 1), (2, 2), (4, 4), (8, 8)]
    runs = [make_record(strategy="parameter_server", num_workers=n, num_servers=servers) for n, servers in sizes]
    rows = looks.with_looks(summarize(*runs))
    found = {label: len(curve) for label, _, curve in looks.curves(rows)}
    assert found == {"1 server": 2, "1 server per worker": 3}
    assert {label for label, _, _ in looks.curves(looks.with_looks(summarize(*runs[:3])))} == {"1 server", "2 servers"}


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


def test_where_only_equal_workers_were_compared_at_several_sizes_workers_are_the_axis() -> None:
    served: dict[str, Any] = {"strategy": "parameter_server"}
    for servers, size in (([1, 2, 4], "workers"), ([1, 3], "ranks on one machine")):
        arms = [make_record(strategy="ring_allreduce", num_workers=n) for n in (1, 2, 4)]
        panels_drawn = draw_overview(*arms, *(make_record(**served, num_workers=n) for n in servers))
        assert [axes.get_xlabel() for axes in panels_drawn] == [size, size]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.08)), min_size=1, max_size=12))
def test_names_beside_curves_never_cover_each_other(wanted: list[tuple[float, float]]) -> None:
    ys, heights = zip(*wanted, strict=True)
    placed = sorted(zip(labels.spread_out(ys, heights), heights, strict=True))
    for (low, height), (high, other) in itertools.pairwise(placed):
        assert high - low >= (height + other) / 2 - 1e-9


@pytest.mark.parametrize("high", [1.01, 1.2, 4.0, 60.0])
def test_three_percent_can_be_seen_on_the_axis_of_ratios(high: float) -> None:
    axes = Figure().add_subplot()
    overview.ratio_axis(axes, 0.99, high)
    heights = axes.transLimits.transform(axes.transScale.transform([(0, ratio) for ratio in (1.0, 1.03, high)]))[:, 1]
    assert heights[1] - heights[0] > 0.1
    assert 0 < heights[0] < heights[2] < 1
    assert 1 in axes.get_yticks()


def test_strategies_differ_in_colour() -> None:
    assert len({entry.colour for entry in CATALOGUE.values()}) == len(CATALOGUE)


def test_variants_of_the_only_strategy_have_the_colours_and_are_distinguishing_knobs(tmp_path: Path) -> None:
    ways = [{}, {"compression": "onebit"}, {"compression": "int8"}, {"sync_every": 5}, {"wire_dtype": "bf16"}]
    served = {"strategy": "parameter_server", "num_workers": 2, "num_servers": 1}
    runs = [make_record(**served, **way) for way in ways]
    runs += [make_record(**{**served, "num_workers": 4}, **way) for way in ways]
    for run in runs:
        records.write_steps(tmp_path, run.run_id, make_steps(run))
    found = draw(*runs, folder=tmp_path)
    for name in ("overview", "loss_against_time", "front"):
        axes = found[name].axes[0]
        lines = {label: line for label, line in curves_of(axes).items() if "server" in label}
        if name != "front":  # only the best cells have names there
            assert len({line.get_color() for line in lines.values()}) == len(lines) == len(ways), name
        assert CATALOGUE["parameter_server"].colour in {line.get_color() for line in lines.values()}
        assert not any("none" in str(label) or "sync_every 1" in str(label) for label in lines)


def test_a_label_says_neither_what_is_not_set_nor_what_is_not_done() -> None:
    unset = {"link": float("nan"), "window_bytes": None, "compression": "none", "sync_every": 1, "wire_dtype": "fp32"}
    label = looks.curve_label({"strategy": "parameter_server", "num_servers": 1, "placement": "dedicated", **unset})
    assert label == "1 server, fp32 wire"


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


def test_what_varies_tells_curves_apart() -> None:
    table = summarize(
        make_record(),
        make_record(strategy="parameter_server", num_workers=2),
        make_record(strategy="parameter_server", num_workers=2, num_servers=2, wire_dtype="fp16"),
        make_record(strategy="ring_allreduce", num_workers=2, wire_dtype="fp16", launcher="horovodrun"),
    )
    names = [label for label, _, _ in looks.curves(looks.with_looks(table))]
    assert len(set(names)) == len(names)
    assert "local" in names  # a strategy that sends nothing is not named by its wire
    assert "Horovod ring, fp16 wire, horovodrun" in names
    assert "2 servers, fp16 wire, mpirun" in names


def test_sizes_are_ticks_unless_their_numbers_would_touch() -> None:
    axes = Figure().add_subplot()
    for sizes, ticks in (([2, 4, 8], [2, 4, 8]), ([1, 100, 101, 102], [1, 102]), ([4], [4])):
        panels.size_axis(axes, sizes)
        assert list(axes.get_xticks()) == ticks


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
    assert {name.split(".")[1] for name in contents[0]} == set(figures.KINDS)


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
