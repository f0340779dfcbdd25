"""`psring predict`: held-out cells of a committed study, other clusters, targets, and what is refused."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from bench.config import BadInput, make_config
from bench.predict import ClusterCalibration, maps, step_time
from bench.predict.cell import Cell
from bench.predict.command import Answer, Request, as_text, kept_costs
from bench.predict.fit import Fit, fit
from bench.predict.grid import Change, parse_counts, templates
from bench.predict.measured import Measured, read
from bench.predict.table import Row

STUDY = Path(__file__).parents[2] / "results/2026-11-26-topology"
Psring = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def study() -> list[Measured]:
    return read(STUDY)


@pytest.fixture(scope="module")
def fitted(study: list[Measured]) -> Fit:
    return fit(study)


def errors(measured: list[Measured], most_nodes: int) -> dict[str, float]:
    """Predicted over measured step, less 1, of the cells beyond the fit."""
    found = fit([one for one in measured if one.cell.num_nodes <= most_nodes])
    beyond = [one for one in measured if one.cell.num_nodes > most_nodes]
    return {one.name: step_time(one.cell, found.calibration).step_s / one.step_s - 1 for one in beyond}


def test_a_fit_on_up_to_4_nodes_predicts_8(study: list[Measured]) -> None:
    found = errors(study, 4)
    assert len(found) == 5
    assert sum(map(abs, found.values())) / len(found) < 0.05
    assert max(map(abs, found.values())) < 0.10


def test_a_fit_finds_the_costs_that_made_the_runs(study: list[Measured]) -> None:
    truth = ClusterCalibration(latency_s=4e-4, message_cpu_s=2e-5, step_overhead_s=3e-3, burst_bytes=131072)
    made = [
        Measured(one.name, one.cell, (step_time(one.cell, truth).step_s,) * 3, None, 0.3, 0.001, 0.0, 0.0)
        for one in study
    ]
    found = fit(made).calibration
    for one in made:
        assert step_time(one.cell, found).step_s == pytest.approx(one.step_s, rel=0.005)


def test_bands_widen_with_distance(study: list[Measured], fitted: Fit) -> None:
    cell = next(one.cell for one in study if one.config.strategy == "mpi_ring" and one.config.num_workers == 8)
    far = Cell(cell.config.model_copy(update={"num_workers": 4096}))
    assert fitted.half_band(far) > 2 * fitted.half_band(cell)
    assert fitted.ranges.beyond(far, fitted.calibration) == {"nodes": pytest.approx(512)}
    assert fitted.ranges.beyond(cell, fitted.calibration) == {}


def test_a_regime_that_was_not_measured_is_refused(fitted: Fit) -> None:
    config = make_config({"strategy": "parameter_server", "consistency": "asp", "num_workers": 3}, "test")
    with pytest.raises(BadInput, match="parameter_server dedicated asp: not measured in DIR"):
        fitted.check_regime(Cell(config), "DIR")


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_other_nodes_link_model_and_device(psring: Psring, tmp_path: Path) -> None:
    words = ("--num-nodes", "8,4096", "--nodes-of", "8", "--link", "100gbit", "--model", "gpt2-xl", "--device", "a100",
             "--price-per-node-hour", "30")  # fmt: skip
    ended = psring("predict", STUDY, *words, "--out", tmp_path / "rows.csv")
    assert ended.returncode == 0, ended.stderr
    assert "stay those of the measured hosts; --calibration gives others" in ended.stdout
    found = rows(tmp_path / "rows.csv")
    assert {row["num_nodes"] for row in found} == {"8", "4096"}
    assert {row["model"] for row in found} == {"gpt2-xl"}
    numbers = [row for row in found if row["tokens_per_s"]]
    assert len(numbers) == len(found)
    for row in numbers:
        assert float(row["tokens_per_s_low"]) < float(row["tokens_per_s"]) < float(row["tokens_per_s_high"])
        assert 0 < float(row["scaling_efficiency_per_node"]) <= 1
        assert "link ×" in row["extrapolated"]
        hour = float(row["tokens_per_s"]) * 3600 / 1e6
        assert float(row["price_per_million_tokens"]) == pytest.approx(30 * int(row["num_nodes"]) / hour)
    assert [row["best"] for row in found].count("True") == 2


def test_costs_of_the_measured_hosts_that_are_kept_are_named() -> None:
    def said(calibration: Path | None = None, **values: Any) -> str:
        return kept_costs(Request(STUDY, calibration=calibration, change=Change(**values)), ClusterCalibration())

    assert said() == said(calibration=Path("costs.json"), link="25gbit") == ""
    assert "for 25gbit and a100, latency 50 µs" in said(link="25gbit", device="a100")


def test_a_sweep_has_a_row_for_every_cell(psring: Psring, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "defaults: {model: gpt-micro, compute: emulated, emulated_forward_s: 0.1, emulated_backward_s: 0.2}\n"
        "grid: [{strategy: [ring_allreduce, ddp], num_workers: [2, 16]}]\n"
        "cluster: {num_nodes: 16, link: 100mbit}\n"
    )
    ended = psring("predict", STUDY, "--sweep", sweep, "--out", tmp_path / "rows.csv")
    assert ended.returncode == 0, ended.stderr
    found = {(row["strategy"], row["num_workers"]): row for row in rows(tmp_path / "rows.csv")}
    assert len(found) == 4
    assert found["ddp", "2"]["status"] == "unsupported"
    assert "not measured" in found["ddp", "2"]["reason"]
    assert found["ddp", "2"]["tokens_per_s"] == ""
    assert found["ring_allreduce", "16"]["extrapolated"] == "link ×2, nodes ×2"


def test_a_target_needs_no_folder(psring: Psring) -> None:
    ended = psring("predict", "--target", "gpt2, 25gbit, a100 at 40% MFU, 8 nodes")
    assert ended.returncode == 0, ended.stderr
    assert "no difference on 8 nodes" in ended.stdout  # from data sheets alone the bands are wide


def test_the_fastest_is_named_only_where_bands_are_apart(fitted: Fit) -> None:
    def said(*rates: float) -> str:
        row = {"num_nodes": 8, "strategy": "ddp", "placement": "", "consistency": "bsp", "num_workers": 8,
               "num_servers": 0, "status": "ok", "price_per_million_tokens": None, "bounded_by": "", "extrapolated": "",
               "scaling_efficiency_per_node": None}  # fmt: skip
        made: list[Row] = [
            {**row, "tokens_per_s": rate, "tokens_per_s_low": rate / 1.1, "tokens_per_s_high": rate * 1.1,
             "best": rate == max(rates)} for rate in rates
        ]  # fmt: skip
        return as_text(Answer(fitted, made, "", [], Change())).splitlines()[-1]

    assert said(100.0, 130.0) == "fastest on 8 nodes: ddp (8 workers)"
    assert said(100.0, 115.0).startswith("no difference on 8 nodes (90 % bands overlap, or within 2%): ddp")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give a results folder, or --target"),
        (("--target", "gpt2, 8 nodes"), "no link in"),
        ((STUDY, "--num-nodes", "8,x"), "no list of whole numbers"),
        ((STUDY, "--num-nodes", "8", "--link", "fast"), "is not a rate"),
        ((STUDY, "--num-nodes", "8", "--model", "gpt3"), "there is no 'gpt3'"),
        ((STUDY, "--num-nodes", "8", "--device", "b200"), "there is no 'b200'"),
        (("nowhere",), "no runs.jsonl there"),
        ((STUDY, "--link", "1gbit"), "--link: changes nothing without --num-nodes"),
        ((STUDY, "--nodes-of", "4"), "--nodes-of: changes nothing without --num-nodes"),
        ((STUDY, "--num-nodes", ""), "'' is no list of whole numbers"),
        ((STUDY, "--num-nodes", "8", "--mfu", "0.3"), "--mfu: is a share of the peak of --device"),
        ((STUDY, "--num-nodes", "4", "--num-servers", "1,4"), "no cell has 4 servers"),
        ((STUDY, "--sweep", STUDY / "sweep.yaml", "--model", "gpt2"), "--model: --sweep names the cells"),
        ((STUDY, "--sweep", STUDY / "sweep.yaml", "--nodes-of", "3"), "do not fill nodes of 3"),
        (("--target", "gpt2, 1gbit, v100 at 40% MFU, 8 nodes, bf16"), "v100 has no rate for precision: bf16"),
        (("--target", "gpt2, 1gbit, v100 at 40% MFU, 8 nodes", "--sweep", STUDY / "sweep.yaml"), "--target: --sweep"),
        (
            ("--target", "gpt2, 1gbit, v100 at 40% MFU, 8 nodes", "--out", "x.svg", "--map", "x.svg"),
            "give another name",
        ),
    ],
)
def test_bad_input_is_one_line(psring: Psring, words: tuple[object, ...], said: str) -> None:
    ended = psring("predict", *words)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_maps_hold_a_winner_for_every_point(study: list[Measured], fitted: Fit) -> None:
    found = maps.winners(templates(study), fitted, Change(), ("200mbit", "1gbit"), nodes=(2, 8))
    assert [(square.across, square.nodes) for square in found] == [
        ("200mbit", 2), ("200mbit", 8), ("1gbit", 2), ("1gbit", 8)
    ]  # fmt: skip
    assert all(square.lead >= 1 for square in found)


def test_a_lead_within_the_bands_is_no_difference(study: list[Measured], fitted: Fit) -> None:
    """Ring and colocated servers were measured as equivalent on 8 nodes; one server is far behind."""
    rings = [config for config in templates(study) if config.placement != "dedicated" or not config.kind.has_servers]
    assert not any(square.decided for square in maps.winners(rings, fitted, Change(), ("250mbit",), nodes=(8,)))
    one_server = [config for config in templates(study) if config.kind.name != "mpi_ring"]
    one_server = [c for c in one_server if not c.kind.has_servers or c.placement == "dedicated"]
    (clear,) = maps.winners(one_server, fitted, Change(num_servers=(1,)), ("250mbit",), nodes=(8,))
    assert clear.decided
    assert clear.winner == "Horovod ring"
    assert not maps.winners(one_server, replace(fitted, spread=1.0), Change(), ("250mbit",), nodes=(8,))[0].decided


@pytest.mark.parametrize("lead", [1.0, 1.019])
def test_a_lead_within_the_margin_is_no_difference(study: list[Measured], fitted: Fit, lead: float) -> None:
    cell, certain = study[0].cell, replace(fitted, spread=0.0, samples=())
    assert not maps.decided(lead, cell, cell, certain)
    assert maps.decided(1.03, cell, cell, certain)


def test_maps_are_drawn(psring: Psring, tmp_path: Path) -> None:
    ended = psring("predict", STUDY, "--map", tmp_path / "map.png")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert psring("predict", STUDY, "--map", tmp_path / "map.txt").returncode == 2


def test_counts() -> None:
    assert parse_counts("8, 64,8", "--num-nodes") == (8, 64)
