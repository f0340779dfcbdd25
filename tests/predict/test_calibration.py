"""The costs that a prediction is made from, and models that no knob describes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.config import BadInput, make_config
from bench.durations import by_flops
from bench.predict import Cell, ClusterCalibration, Workload, step_time

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": 512, "block_size": 32}
COSTS = ClusterCalibration(bytes_per_s=25e6)


def measured(**changes: object) -> dict[str, object]:
    """The content of a file of psring calibrate."""
    config = make_config(SHAPE, "test")
    times = by_flops(config.gpt, 0.25, 0.5, 0.0)
    content: dict[str, object] = {
        "shape": config.gpt.model_dump(), "batch_size": 8, "gradient_accumulation": 1, "precision": "fp32",
        "num_threads": 1, "optimizer": "adamw", "steps": 3,
        "forward_s": times.forward_s, "backward_s": times.backward_s,
        "optimizer_s": config.gpt.num_parameters * 1e-9, "measured_on": "a CPU",
        "cluster": {"bytes_per_s": 24e6, "latency_s": 1e-4, "link": "200mbit", "intervals": {}},
    }  # fmt: skip
    return content | changes


def test_a_prediction_reads_the_file_of_psring_calibrate(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(measured()))
    found = ClusterCalibration.read(file)
    assert (found.bytes_per_s, found.latency_s, found.link) == (24e6, 1e-4, "200mbit")
    assert found.optimizer_s_per_parameter == pytest.approx(1e-9)
    config = make_config({**SHAPE, "strategy": "mpi_ring", "num_workers": 2, "launcher": "mpirun"}, "test")
    assert step_time(Cell(config), found).compute_s == pytest.approx(0.75 + config.gpt.num_parameters * 1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency_s": -1}, {"latency_s": 50}, {"add_s_per_byte": 1e300}, {"bytes_per_s": 1e-300},
        {"bytes_per_s": 1e300}, {"speed": 1}, {"link": 25}, {"link": "fast"}, {"link": "0gbit"},
        {"speed_factors": []}, {"speed_factors": [0]},
        {"compute_cv": 1e300}, {"cores": 1 << 70}, {"intervals": {"latency_s": [2, 1]}}, {"measured_nodes": [8, 2]},
        {"flops_per_s": 0}, {"duplex_factor": 3}, {"message_cpu_s": True},
    ],
)  # fmt: skip
def test_a_number_that_no_machine_has_is_refused_by_name(wrong: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(measured(cluster=wrong)))
    with pytest.raises(BadInput, match=f"calibration.json: .*{next(iter(wrong))}.*; make it anew"):
        ClusterCalibration.read(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": {**SHAPE, "n_embd": 0}}, "shape.n_embd"),
        ({"shape": {**SHAPE, "n_head": 3}}, "does not divide"),
        ({"shape": None}, "shape"),
        ({"optimizer_s": "fast"}, "optimizer_s"),
        ({"forward_s": {}}, "forward_s"),
        ({"forward_s": {"wte": 1.0}}, "other layers"),
        ({"cluster": "fast"}, "cluster"),
    ],
)
def test_what_no_calibration_says_is_refused_by_name(change: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(json.dumps(measured(**change)))
    with pytest.raises(BadInput, match=said):
        ClusterCalibration.read(tmp_path / "calibration.json")


@pytest.mark.parametrize(
    "knobs",
    [
        {"strategy": "ring_allreduce"},
        {"strategy": "parameter_server", "num_servers": 2},
        {"strategy": "parameter_server", "placement": "colocated", "sharding": "tensors"},
    ],
)
def test_a_given_model_is_predicted_as_the_gpt_with_the_same_tensors(knobs: dict[str, object]) -> None:
    times = {"compute": "emulated", "emulated_forward_s": 0.01, "emulated_backward_s": 0.02, "emulated_optimizer_s": 0}
    config = make_config({**SHAPE, **knobs, **times, "num_workers": 4, "launcher": "mpirun"}, "test")
    of_gpt = Cell(config)
    given = Cell(
        make_config({**knobs, "compute": "none", "num_workers": 4, "launcher": "mpirun"}, "test"),
        workload=Workload(of_gpt.tensors, by_flops(config.gpt, 0.01, 0.02, 0.0)),
    )
    assert step_time(given, COSTS).step_s == pytest.approx(step_time(of_gpt, COSTS).step_s)
    assert given.payload == config.wire_bytes
