"""Laws of an explanation: parts add up to the step, each appears with its cause, and advice is a change that works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.config import BadInput, RunConfig, make_config
from bench.predict import Cell, ClusterCalibration, step_time
from bench.predict import explain as explaining
from bench.predict.advice import WORTH_IT, ranked
from bench.predict.explain import BUBBLE, COMPUTE, CYCLE, EXPOSED, HOT, LATENESS, LINK, LOOP, MESSAGES, STRAGGLERS, SUMS
from bench.predict.measured import Measured

COSTS = ClusterCalibration(
    latency_s=2e-4, message_cpu_s=3e-5, add_s_per_byte=5e-10, copy_s_per_byte=3e-10, cycle_s=1e-3, step_overhead_s=2e-3,
    payload_share=0.95,
)  # fmt: skip
SERVED: dict[str, Any] = {"strategy": "parameter_server", "num_workers": 4, "num_servers": 1}
CELLS: list[dict[str, Any]] = [
    {"strategy": "independent"},
    SERVED,
    {**SERVED, "num_servers": 4, "sharding": "tensors", "vocab_size": 16_384},
    {**SERVED, "clip_norm": 1.0, "schedule": "priority"},
    {**SERVED, "consistency": "asp", "speed_factor": "1=0.5"},
    {**SERVED, "sync_every": 3},
    {"strategy": "parameter_server", "placement": "colocated"},
    {"strategy": "parameter_server", "placement": "mixed", "num_servers": 2},
    {"strategy": "ring_allreduce"},
    {"strategy": "mpi_ring", "speed_factor": "1=0.5"},
    {"strategy": "ddp", "compute_cv": 0.1},
]


def config(**knobs: Any) -> RunConfig:
    sleeping = {
        "compute": "emulated",
        "emulated_forward_s": 0.1,
        "emulated_backward_s": 0.2,
        "steps": 6,
        "warmup_steps": 3,
    }
    return make_config({"model": "gpt-micro", "link": "200mbit", "num_workers": 4, **sleeping, **knobs}, "test")


def cell(step_s: float | None = None, late_s: float = 0.0, **knobs: Any) -> Measured:
    """A cell that took as long as the model says, or so long."""
    made = Cell(config(**knobs))
    found = step_s or step_time(made, COSTS).step_s
    return Measured("cell", made, (found,), None, 0.3 + late_s, 0.001, 0.0001, 0.01)


@pytest.mark.parametrize("knobs", CELLS, ids=str)
def test_the_parts_add_up_to_the_predicted_step(knobs: dict[str, Any]) -> None:
    found = explaining.of_cell(cell(**knobs), COSTS)
    assert found.unexplained_s == pytest.approx(0, abs=1e-5)
    slower = explaining.of_cell(cell(step_s=found.step_s + 0.1, **knobs), COSTS)
    assert slower.parts == found.parts
    assert slower.unexplained_s == pytest.approx(0.1, abs=1e-5)  # shown, and not put on a part
    assert "unexplained" in explaining.describe(slower)[1]


def test_each_part_appears_with_its_cause() -> None:
    def parts(late_s: float = 0.0, **knobs: Any) -> dict[str, float]:
        return explaining.of_cell(cell(late_s=late_s, **knobs), COSTS).parts

    alone = parts(strategy="independent")
    assert alone[COMPUTE] == pytest.approx(0.3, rel=0.01)
    assert set(alone) == {COMPUTE, LOOP}
    assert parts(strategy="independent", late_s=0.001)[LATENESS] == pytest.approx(0.001)
    ring = parts(strategy="ring_allreduce")
    assert {LINK, SUMS, MESSAGES, CYCLE} <= set(ring)
    assert CYCLE not in parts(strategy="mpi_ring")
    assert parts(strategy="mpi_ring", speed_factor="1=0.5")[STRAGGLERS] == pytest.approx(0.3, rel=0.05)
    whole = {**SERVED, "num_servers": 4, "vocab_size": 16_384}
    assert parts(**whole, sharding="tensors")[HOT] > 2 * parts(**whole)[LINK]
    assert HOT not in parts(**whole)


def test_a_bubble_is_a_part_of_a_pipeline_alone() -> None:
    made = cell(strategy="pipeline", n_layer=4, num_micro_batches=4)
    found = explaining.of_cell(made, COSTS)
    assert found.parts[BUBBLE] == pytest.approx(step_time(made.cell, COSTS).bubble_s)
    assert found.parts[BUBBLE] > 0.05
    assert found.unexplained_s == pytest.approx(0, abs=1e-5)
    assert BUBBLE not in explaining.of_cell(cell(strategy="zero"), COSTS).parts


def test_advice_is_ranked_by_a_gain_that_the_model_has() -> None:
    made = Cell(config(**SERVED))
    found = ranked(made, COSTS)
    assert [one.gain for one in found] == sorted((one.gain for one in found), reverse=True)
    assert min(one.gain for one in found) >= WORTH_IT
    for one in found:
        changed = config(**{**SERVED, **one.change})
        assert one.gain == pytest.approx(step_time(made, COSTS).step_s / step_time(Cell(changed), COSTS).step_s)


@pytest.mark.parametrize(
    ("knobs", "text"),
    [
        ({**SERVED, "num_servers": 4, "sharding": "tensors", "vocab_size": 16_384}, "ranges instead of whole tensors"),
        ({"strategy": "mpi_ring", "link": "50mbit"}, "wire fp16"),
        ({"strategy": "mpi_ring", "link": "10gbit", "speed_factor": "1=0.2"}, "workers of equal speed"),
        ({**SERVED, "num_workers": 3}, "colocated servers (1 node fewer)"),
    ],
    ids=str,
)
def test_the_first_advice_removes_the_bottleneck(knobs: dict[str, Any], text: str) -> None:
    assert ranked(Cell(config(**knobs)), COSTS)[0].text == text


def test_where_nothing_helps_nothing_is_advised() -> None:
    assert ranked(Cell(config(strategy="mpi_ring", link="10gbit")), ClusterCalibration()) == []
    assert ranked(Cell(config(strategy="independent")), COSTS) == []


def test_without_a_known_link_the_measured_phases_are_the_parts() -> None:
    real = {"compute": "real", "emulated_forward_s": None, "emulated_backward_s": None, "link": None}
    found = explaining.explain([cell(step_s=0.32, strategy="mpi_ring", **real)])[0]
    assert found.parts[COMPUTE] == pytest.approx(0.301)
    assert found.parts[EXPOSED] == pytest.approx(0.01)
    assert found.unexplained_s == pytest.approx(0.32 - 0.3111)
    assert found.advice is None
    assert "no bound: the rate of its links is not known" in explaining.describe(found)[0]
    assert "1 cells without a known link" in explaining.summary([found])


def test_so_they_are_where_the_times_of_the_layers_are_elsewhere() -> None:
    elsewhere = {"compute_from": "no/such/file.json", "emulated_forward_s": None, "emulated_backward_s": None}
    made = Cell(config(**SERVED, **elsewhere))
    found = explaining.explain([Measured("cell", made, (0.4,), None, 0.3, 0.001, 0.0001, 0.01)])[0]
    assert found.parts[EXPOSED] == pytest.approx(0.01)


def test_a_committed_study_is_explained() -> None:
    folder = Path(__file__).parents[2] / "results" / "2026-11-26-topology"
    found = explaining.of_folder(folder)
    shares = sorted(abs(one.unexplained_share) for one in found)
    assert shares[len(shares) // 2] <= 0.05
    assert {one.bound for one in found} >= {"compute", "server link"}
    assert [one.cell for one in explaining.only(found, found[0].cell[:6])] == [found[0].cell]
    with pytest.raises(BadInput, match="no ok cell's name begins with 'nothing'"):
        explaining.only(found, "nothing")
