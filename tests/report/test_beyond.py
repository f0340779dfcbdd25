"""What a report says of cells that were not measured: figures where links are known, else a sentence that says why."""

from __future__ import annotations

from colorsys import rgb_to_hsv
from typing import Any

import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from bench import records
from bench.config import BadInput
from bench.records import RunRecord
from bench.report import beyond, bounds, cells, maps, modelled
from bench.report.panels import SIZE
from strategies.catalogue import CATALOGUE
from tests.support.synthetic import make_record

ASLEEP: dict[str, Any] = {
    "model": "gpt-micro", "compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2,
    "link": "200mbit",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs() -> list[RunRecord]:
    placed: dict[str, Any] = {"strategy": "parameter_server", "placement": "colocated", "num_servers": 0}
    return [
        on_nodes(2000.0 * n, num_workers=n, **knobs) for n in (2, 4) for knobs in ({"strategy": "mpi_ring"}, placed)
    ]


def on_nodes(tokens_per_s: float, **knobs: Any) -> RunRecord:
    """A run whose ranks have a node each."""
    made = make_record(tokens_per_s=tokens_per_s, **ASLEEP, **knobs)
    assert made.summary is not None
    return made.model_copy(update={"summary": made.summary.model_copy(update={"num_nodes": made.config.world_size})})


@pytest.fixture(scope="module")
def found(runs: list[RunRecord]) -> modelled.Modelled:
    return modelled.of_runs(runs)


def summary_of(runs: list[RunRecord]) -> pd.DataFrame:
    table = cells.summarize(records.frame(runs))
    return bounds.Bounds(table, {run.cell: run.config for run in runs}).added_to(table)


def test_every_cell_and_more_nodes_are_predicted_with_a_band(found: modelled.Modelled, runs: list[RunRecord]) -> None:
    table = found.predicted
    assert set(table["cell"]) == {run.cell for run in runs}
    assert sorted(table[SIZE]) == [2, 2, 4, 4, 8, 8, 16, 16]
    assert (table["predicted_low"] < table["predicted"]).all()
    assert (table["predicted"] < table["predicted_high"]).all()


def test_figures_are_drawn_where_something_is_predicted(found: modelled.Modelled, runs: list[RunRecord]) -> None:
    drawn = beyond.figures(summary_of(runs), found)
    assert list(drawn) == list(beyond.DESCRIPTIONS)
    assert "200 Mbit/s" in [tick.get_text() for tick in drawn["maps"].axes[0].get_yticklabels()]
    assert "psring validate holds cells out" in beyond.text(found)
    assert beyond.parts_remark(found) == ""


def test_without_known_links_one_sentence_says_why() -> None:
    found = modelled.of_runs([make_record(strategy="mpi_ring", num_workers=n) for n in (2, 4)])
    assert beyond.figures(pd.DataFrame(), found) == {}
    assert beyond.text(found).startswith("Nothing is predicted here: the rate of its links is not known")
    assert beyond.parts_remark(found).startswith("2 cells are left out and without a bound: the rate of its links")
    assert "no cell has more than one rank" in beyond.text(modelled.of_runs([make_record()]))
    assert "no cell has more than one rank" in beyond.text(modelled.of_runs([]))


def test_a_fit_that_fails_is_a_sentence(monkeypatch: pytest.MonkeyPatch, runs: list[RunRecord]) -> None:
    def refuse(*_: object) -> None:
        raise BadInput("no fit")

    monkeypatch.setattr(modelled, "fit", refuse)
    found = modelled.of_runs(runs)
    assert beyond.text(found).startswith("Nothing is predicted here: no fit.")
    assert found.explained == {}


def test_of_many_cells_the_first_are_divided_and_a_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, runs: list[RunRecord]
) -> None:
    for module in (modelled, beyond):
        monkeypatch.setattr(module, "MAX_CELLS", 1)
    found = modelled.of_runs(runs)
    assert len(found.explained) == 1
    assert beyond.parts_remark(found) == "The first 1 of 4 cells are shown; `psring explain DIR` prints all of them."


def test_a_single_strategy_has_no_map(runs: list[RunRecord]) -> None:
    alone = [run for run in runs if run.config.strategy == "mpi_ring"]
    found = modelled.of_runs(alone)
    assert list(beyond.figures(summary_of(alone), found)) == ["prediction"]
    assert "There is no map" in beyond.text(found)


def test_a_map_has_the_colours_of_the_report_and_numbers_that_can_be_read() -> None:
    servers = [maps.colour_of(f"{placement} servers") for placement in ("dedicated", "colocated", "mixed")]
    others = [maps.colour_of(entry.title) for entry in CATALOGUE.values() if not entry.has_servers]
    assert len({*servers, *others}) == len(servers) + len(others)
    hues = {round(rgb_to_hsv(*to_rgb(colour))[0], 1) for colour in (*servers, CATALOGUE["parameter_server"].colour)}
    assert len(hues) == 1
    decidable = [maps.colour_of(entry.title) for entry in CATALOGUE.values() if entry.communicates]
    assert all(contrast(colour, maps.ON_COLOUR) > 4.5 for colour in (*servers, *decidable))


def contrast(one: str, other: str) -> float:
    """Of WCAG 2: 1 is none, 21 black on white."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
