"""Every figure shows every ok cell, its labels and its ideal, with axes that mislead nobody."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from bench import records
from bench.records import RunRecord
from bench.report import cells, duels, figures, looks, loss, panels
from strategies.catalogue import CATALOGUE
from tests.support.synthetic import demo_records, make_failure, make_record, make_steps

BY_SETTING = ("throughput", "scaling_efficiency", "communication_volume", "step_time", "loss_against_time")


def summarize(*runs: RunRecord) -> pd.DataFrame:
    return cells.summarize(records.frame(runs))


def draw(*runs: RunRecord, folder: Path = Path("nowhere")) -> dict[str, Figure]:
    table = records.frame(runs)
    lines = loss.read(folder, table)
    summary = loss.add_costs(cells.summarize(table), table, lines)
    return figures.make_figures(summary, duels.duels(table), lines)


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


def colours(axes: Axes) -> dict[str, str]:
    handles, labels = axes.get_legend_handles_labels()
    lines = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
    return {label: to_hex(line.get_color()) for label, line in zip(labels, lines, strict=True)}


def test_all_figures_are_described(drawn: dict[str, Figure]) -> None:
    assert list(drawn) == list(figures.DESCRIPTIONS)


def test_each_figure_has_one_panel_per_precision_and_batch(drawn: dict[str, Figure]) -> None:
    for name in BY_SETTING:
        titles = [axes.get_title(loc="left") for axes in drawn[name].axes]
        assert len(set(titles)) == 4
        assert len(titles) == (8 if name == "communication_volume" else 4)  # per worker and per server


def test_many_settings_are_not_all_drawn_and_the_figure_says_so() -> None:
    runs = [make_record(strategy="ddp", num_workers=2, batch_size=n) for n in range(1, panels.MAX_PANELS + 3)]
    figure = draw(*runs)["throughput"]
    assert len(figure.axes) == panels.SHOWN
    assert f"of {len(runs)} settings" in figure.get_suptitle()


def test_many_cells_keep_the_step_time_figure_short_and_the_largest_in_it() -> None:
    runs = [make_record(strategy="ddp", num_workers=n) for n in range(1, 2 * figures.MAX_BARS)]
    axes = draw(*runs)["step_time"].axes[0]
    assert len(axes.get_yticklabels()) == figures.MAX_BARS
    assert axes.get_yticklabels()[-1].get_text() == str(2 * figures.MAX_BARS - 1)
    assert f"of {len(runs)}" in axes.get_title(loc="right")


def test_a_strategy_has_one_colour_everywhere(drawn: dict[str, Figure]) -> None:
    for name in ("overview", "throughput", "scaling_efficiency", "communication_volume", "batch_size", "front"):
        for axes in drawn[name].axes:
            for label, colour in colours(axes).items():
                for entry in CATALOGUE.values():
                    if label.split(",")[0] == entry.title:
                        assert colour == entry.colour


def test_strategies_differ_in_colour_and_marker() -> None:
    assert len({entry.colour for entry in CATALOGUE.values()}) == len(CATALOGUE) <= len(looks.MARKERS)


def test_variants_of_the_only_strategy_have_the_colours_and_are_distinguishing_knobs(tmp_path: Path) -> None:
    ways = [{}, {"compression": "onebit"}, {"compression": "int8"}, {"sync_every": 5}, {"wire_dtype": "bf16"}]
    served = {"strategy": "parameter_server", "num_workers": 2, "num_servers": 1}
    runs = [make_record(**served, **way) for way in ways]
    for run in runs:
        records.write_steps(tmp_path, run.run_id, make_steps(run))
    found = draw(*runs, folder=tmp_path)
    for name in ("throughput", "loss_against_time", "front"):
        axes = found[name].axes[0]
        lines = {line.get_label(): line for line in axes.lines if "server" in str(line.get_label())}
        assert len({line.get_color() for line in lines.values()}) == len(lines) == len(ways), name
        assert len({line.get_marker() for line in lines.values()}) == len(ways), name
        assert CATALOGUE["parameter_server"].colour in {line.get_color() for line in lines.values()}
        assert not any("none" in str(label) or "sync_every 1" in str(label) for label in lines)


def test_a_label_says_neither_what_is_not_set_nor_what_is_not_done() -> None:
    unset = {"link": float("nan"), "window_bytes": None, "compression": "none", "sync_every": 1, "wire_dtype": "fp32"}
    label = looks.curve_label({"strategy": "parameter_server", "num_servers": 1, "placement": "dedicated", **unset})
    assert label == "parameter server, 1 server, fp32 wire"


def test_who_has_no_loss_has_no_line(tmp_path: Path) -> None:
    trained, slept = (make_record(strategy=strategy, num_workers=2) for strategy in ("ddp", "ring_allreduce"))
    records.write_steps(tmp_path, trained.run_id, make_steps(trained))
    records.write_steps(tmp_path, slept.run_id, [replace(step, loss=None) for step in make_steps(slept)])
    figure = draw(trained, slept, folder=tmp_path)["loss_against_time"]
    assert [line.get_label() for line in figure.axes[0].lines] == ["PyTorch DDP · 2"]
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
    assert first.get_xlabel() == "emulated nodes"
    assert max(max(line.get_ydata()) for line in first.lines) < 1000
    assert [axes.get_title(loc="left").split(",")[0] for axes in found["throughput"].axes] == [
        "emulated nodes", "one machine",
    ]  # fmt: skip


def with_nodes(run: RunRecord) -> RunRecord:
    assert run.summary is not None
    return run.model_copy(update={"summary": run.summary.model_copy(update={"num_nodes": run.config.world_size})})


def test_invalid_rows_are_in_no_figure() -> None:
    good = make_record(strategy="ddp", num_workers=2, tokens_per_s=100.0)
    bad = make_record(strategy="ddp", num_workers=4, tokens_per_s=9e9).model_copy(
        update={"status": "invalid", "reason": "the machine was the bottleneck"}
    )
    axes = draw(good, bad)["throughput"].axes[0]
    assert max(max(line.get_ydata()) for line in axes.lines) < 9e9


def test_axes_start_at_zero_and_have_units(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        for axes in figure.axes:
            if name != "loss_against_time":  # a loss has no zero to be compared with
                assert (axes.get_xlim() if name == "step_time" else axes.get_ylim())[0] == 0
            assert axes.get_xlabel()
            assert axes.get_ylabel()


def test_scaling_plots_show_the_ideal(drawn: dict[str, Figure]) -> None:
    for name in ("throughput", "scaling_efficiency"):
        for axes in drawn[name].axes:
            assert any(label.startswith("ideal") for label in colours(axes))


def test_labels_are_written_on_every_panel(drawn: dict[str, Figure]) -> None:
    for name in BY_SETTING:
        for axes in drawn[name].axes:
            assert [text.get_text().replace("\n", " ") for text in axes.texts] == [
                "few launches; loopback; oversubscribed at 4 workers"
            ]


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
    names = [label for label, _, _ in looks.curves(looks.with_looks(table))]
    assert len(set(names)) == len(names)
    assert "local" in names  # a strategy that sends nothing is not named by its wire
    assert "ring-allreduce, fp16 wire, horovodrun" in names
    assert "parameter server, 2 servers, fp16 wire, mpirun" in names


def test_wide_ranges_of_workers_double_by_equal_steps() -> None:
    narrow, wide = (
        draw(*(make_record(strategy="ddp", num_workers=n) for n in sizes)) for sizes in ([1, 2, 4], [1, 2, 4, 8])
    )
    assert narrow["throughput"].axes[0].get_xscale() == "linear"
    assert wide["throughput"].axes[0].get_xscale() == "log"
    assert list(wide["throughput"].axes[0].get_xticks()) == [1, 2, 4, 8]


def test_error_bars_need_more_than_one_launch() -> None:
    for repeats in (1, 3):
        runs = [make_record(repeat=r, tokens_per_s=100.0 + r) for r in range(repeats)]
        axes = draw(*runs)["throughput"].axes[0]
        spread = [segment for bars in axes.collections for segment in bars.get_segments()]
        assert len(spread) == (1 if repeats > 1 else 0)
        assert all(segment[1][1] - segment[0][1] == repeats - 1 for segment in spread)


def test_figures_without_numbers_are_left_out(tmp_path: Path) -> None:
    assert figures.write_figures(draw(make_failure("failed", "killed")), tmp_path) == []
    assert not {"communication_volume", "batch_size", "strong_scaling", "front"} & set(draw(make_record()))


def test_the_same_summary_gives_the_same_files(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert "throughput" in figures.write_figures(draw(make_record()), tmp_path / name)
        files = sorted((tmp_path / name / "figures").iterdir())
        contents.append({file.name: file.read_bytes() for file in files})
    assert contents[0] == contents[1]
    assert {name.split(".")[1] for name in contents[0]} == set(figures.KINDS)


def words_of(figure: Figure) -> list[Text]:
    """Titles, notes, axis labels, tick labels of the bars, and the legend."""
    found = [text for axes in figure.axes for text in axes.get_children() if isinstance(text, Text)]
    found += [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label, *axes.get_yticklabels())]
    return found + [text for one in figure.legends for text in one.get_texts()]


def test_no_text_is_cut_off() -> None:
    slept = {"compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2, "batch_size": 16}
    runs = [
        make_record(strategy="parameter_server", num_servers=8, num_workers=16, **way)
        for way in ({}, {"compression": "onebit"}, {**slept, "labels": ("emulated", "oversubscribed", "loopback")})
    ]
    for figure in draw(*runs).values():
        figure.draw_without_rendering()
        for text in words_of(figure):
            box = text.get_window_extent()
            assert not text.get_text() or (box.x0 >= 0 and box.x1 <= figure.bbox.x1), text.get_text()


def test_a_dollar_in_a_path_is_no_formula(tmp_path: Path) -> None:
    runs = [make_record(strategy="ddp", num_workers=2, data=data) for data in ("$a.bin", "$HOME/{b}$_^.bin")]
    figures.write_figures({"throughput": draw(*runs)["throughput"]}, tmp_path)
    drawn = ElementTree.parse(tmp_path / "figures" / "throughput.svg").getroot()
    assert any("$HOME/{b}$_^.bin" in (element.text or "") for element in drawn.iterfind(".//{*}text"))


def test_settings_of_the_user_change_no_figure(tmp_path: Path) -> None:
    contents = []
    for settings in ({}, {"lines.linewidth": 9, "axes.grid": True, "font.family": "serif", "savefig.bbox": "tight"}):
        with matplotlib.rc_context(settings):
            figures.write_figures({"throughput": draw(make_record())["throughput"]}, tmp_path)
        contents.append([path.read_bytes() for path in sorted((tmp_path / "figures").iterdir())])
    assert contents[0] == contents[1]
