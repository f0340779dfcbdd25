"""Colours, markers and names that tell cells apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import records
from bench.report import figures, looks
from strategies.catalogue import CATALOGUE
from tests.support.drawing import curves_of, draw, summarize
from tests.support.synthetic import make_record, make_steps


def test_a_server_per_worker_is_one_curve() -> None:
    sizes = [(2, 1), (4, 1), (2, 2), (4, 4), (8, 8)]
    runs = [make_record(strategy="parameter_server", num_workers=n, num_servers=servers) for n, servers in sizes]
    rows = looks.with_looks(summarize(*runs))
    found = {label: len(curve) for label, _, curve in looks.curves(rows)}
    assert found == {"1 server": 2, "1 server per worker": 3}
    assert {label for label, _, _ in looks.curves(looks.with_looks(summarize(*runs[:3])))} == {"1 server", "2 servers"}


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
    unset = {
        "link": float("nan"), "window_bytes": None, "compression": "none", "sync_every": 1, "consistency": "bsp",
        "staleness": 0, "wire_dtype": "fp32",
    }  # fmt: skip
    label = looks.curve_label({"strategy": "parameter_server", "num_servers": 1, "placement": "dedicated", **unset})
    assert label == "1 server, fp32 wire"


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


def test_of_the_only_strategy_that_communicates_a_knob_has_the_colour_and_a_placement_the_marker() -> None:
    teams: list[dict[str, Any]] = [{"placement": "colocated", "num_servers": 0}, {"num_servers": 1}, {"num_servers": 4}]
    ways = [{"sharding": sharding, **team} for sharding in ("ranges", "tensors") for team in teams]
    runs = [make_record(strategy="parameter_server", num_workers=4, **way) for way in ways]
    rows = looks.with_looks(summarize(make_record(), *runs))  # beside a local baseline, too
    look = {label: found for label, found, _ in looks.curves(rows)}
    colours = {(label.split()[-1], found["color"]) for label, found in look.items() if label != "local"}
    assert len(colours) == len({colour for _, colour in colours}) == 2
    assert len({tuple(map(str, found.values())) for found in look.values()}) == len(look)
    assert look["local"]["color"] == CATALOGUE["local"].colour
    plain = looks.with_looks(summarize(*(run for run in runs if run.config.sharding == "ranges")))
    assert len({found["color"] for _, found, _ in looks.curves(plain)}) == len(teams)


def test_one_copy_on_all_nodes_is_one_curve_beside_data_parallelism_with_equal_work_per_node() -> None:
    asleep = {"compute": "emulated", "device_model": "v100", "device_mfu": 0.001, "n_layer": 8}
    sizes = (2, 4, 8)
    runs = [make_record(strategy="ddp", num_workers=n, batch_size=8, **asleep) for n in sizes]
    runs += [make_record(strategy="pipeline", num_workers=n, batch_size=8 * n, **asleep) for n in sizes]
    pairs = [{"num_workers": n, "model_parallel_size": 2, "batch_size": 16, "num_micro_batches": 8} for n in (4, 8)]
    runs += [make_record(strategy="pipeline", **pair, **asleep) for pair in pairs]
    (panel,) = [axes for axes in draw(*runs)["overview"].axes if "tokens" in axes.get_ylabel()]
    assert "8 sequences per worker" in panel.get_title("left")
    found = {label: len(curve) for label, _, curve in looks.curves(looks.with_looks(figures.to_draw(summarize(*runs))))}
    assert found == {"PyTorch DDP": 3, "pipeline": 3, "pipeline, 2 ranks per copy, 8 micro-batches": 2}
