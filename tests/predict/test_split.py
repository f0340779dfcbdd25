"""Laws of steps that divide the optimizer, the weights or the model: volumes, the bubble, one rank, slower links."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import ledger
from bench.config import RunConfig, make_config
from bench.predict import Breakdown, Cell, ClusterCalibration, split, step_time
from bench.predict.compute import of_cell
from bench.predict.grid import Change, changed
from bench.predict.memory import worker_bytes
from strategies.closed_forms import pipeline_bubble

FREE: dict[str, Any] = {
    "latency_s": 0.0, "message_cpu_s": 0.0, "add_s_per_byte": 0.0, "copy_s_per_byte": 0.0, "payload_share": 1.0,
}  # fmt: skip
BYTES_PER_S = 200e6 / 8
DIVIDED: list[dict[str, Any]] = [
    {"strategy": "zero"},
    {"strategy": "zero", "clip_norm": 1.0},
    {"strategy": "fsdp"},
    {"strategy": "fsdp", "reshard_after_forward": False, "clip_norm": 1.0},
    {"strategy": "fsdp", "gradient_accumulation": 2, "wire_dtype": "bf16"},
]
SPLIT: list[dict[str, Any]] = [
    {"strategy": "pipeline", "num_micro_batches": 4},
    {"strategy": "pipeline", "num_micro_batches": 8, "pipeline_schedule": "gpipe", "clip_norm": 1.0},
    {"strategy": "pipeline", "num_micro_batches": 2, "model_parallel_size": 2},
    {"strategy": "tensor_parallel", "compute": "none"},
    {"strategy": "tensor_parallel", "compute": "none", "model_parallel_size": 2, "clip_norm": 1.0},
]


def config(**knobs: Any) -> RunConfig:
    sleeping = {"compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2,
                "emulated_optimizer_s": 0.001}  # fmt: skip
    sleeping = {} if knobs.get("compute") == "none" else sleeping
    return make_config({"model": "gpt-micro", "n_layer": 4, "link": "200mbit", "num_workers": 4, **sleeping, **knobs},
                       "test")  # fmt: skip


def step(free: dict[str, Any] = FREE, **knobs: Any) -> Breakdown:
    return step_time(Cell(config(**knobs)), ClusterCalibration(**free))


@pytest.mark.parametrize("knobs", DIVIDED, ids=str)
def test_every_rank_sends_what_the_closed_form_says(knobs: dict[str, Any]) -> None:
    told = ledger.predict(config(**knobs)).worker.bytes_sent
    assert told is not None
    assert step(**knobs).worker_link_s == pytest.approx(told / BYTES_PER_S, rel=1e-3)  # a norm is 8 bytes


@pytest.mark.parametrize("knobs", SPLIT, ids=str)
def test_split_models_send_what_the_closed_form_says(knobs: dict[str, Any]) -> None:
    found, told = config(**knobs), ledger.predict(config(**knobs)).worker.bytes_sent
    assert told is not None
    if found.strategy == "pipeline":
        stages = split.stages(Cell(found), of_cell(Cell(found), ClusterCalibration()))
        assert sum(stage.sent_bytes for stage in stages) / len(stages) == pytest.approx(told)
        told = max(stage.sent_bytes for stage in stages)
    assert step(**knobs).worker_link_s == pytest.approx(told / BYTES_PER_S, rel=1e-6)


@pytest.mark.parametrize("knobs", [*DIVIDED, {"strategy": "pipeline", "num_micro_batches": 4}], ids=str)
def test_one_rank_takes_its_compute(knobs: dict[str, Any]) -> None:
    found = step(num_workers=1, **knobs)
    assert found.step_s == pytest.approx(0.3, abs=0.0015)
    assert found.worker_link_s == 0


@pytest.mark.parametrize("knobs", [*DIVIDED, *SPLIT], ids=str)
@settings(max_examples=8, deadline=None)
@given(rate=st.floats(20, 2000), factor=st.floats(1.05, 10))
def test_a_faster_link_never_lengthens_a_step(knobs: dict[str, Any], rate: float, factor: float) -> None:
    slow, fast = (step(**{**knobs, "link": f"{each:.3f}mbit"}) for each in (rate, rate * factor))
    assert fast.step_s <= slow.step_s * 1.001


@pytest.mark.parametrize("knobs", [*DIVIDED, *SPLIT], ids=str)
def test_a_step_is_no_shorter_than_its_compute_and_its_messages(knobs: dict[str, Any]) -> None:
    found = step(**knobs)
    assert found.step_s >= max(found.compute_s, found.worker_link_s) * (1 - 1e-9)
    assert found.step_s == pytest.approx(found.compute_s + found.exposed_communication_s)
    slower = step({**FREE, "latency_s": 1e-3, "message_cpu_s": 1e-4, "copy_s_per_byte": 1e-9}, **knobs)
    assert slower.step_s > found.step_s


def test_on_gloo_nothing_of_fsdp_overlaps() -> None:
    found = step(strategy="fsdp")
    assert found.step_s == pytest.approx(found.compute_s + found.worker_link_s)
    assert step(strategy="fsdp", reshard_after_forward=False).step_s < found.step_s


def test_zero_is_as_fast_as_colocated_servers_where_messages_cost_nothing() -> None:
    served = step(strategy="parameter_server", placement="colocated")
    assert step(strategy="zero").step_s == pytest.approx(served.step_s, rel=0.02)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("micro_batches", [1, 2, 8])
def test_equal_stages_without_messages_idle_for_the_bubble(schedule: str, micro_batches: int) -> None:
    knobs: dict[str, Any] = {"strategy": "pipeline", "pipeline_schedule": schedule, "num_micro_batches": micro_batches}
    stages = [split.Stage(0.1, 0.2, 0, 0.0)] * 4
    end = split.schedule_end(Cell(config(**knobs)), stages, 0.0, 0.0)
    assert 1 - 0.3 / end == pytest.approx(pipeline_bubble(config(**knobs)))
    assert split.schedule_end(Cell(config(**knobs)), stages, 0.1, 0.0) > end


def test_a_pipeline_waits_for_the_stage_with_the_head() -> None:
    found = step(strategy="pipeline", num_micro_batches=4, link="100gbit")
    assert found.bubble_s == pytest.approx(found.exposed_communication_s, rel=0.01)
    assert found.compute_s > (0.3 + 0.001) / 4


def test_ranks_that_divide_weights_share_their_memory() -> None:
    whole, optimizer, weights = (
        worker_bytes(Cell(config(strategy=name, model="gpt2", n_layer=None, num_workers=8)))
        for name in ("mpi_ring", "zero", "fsdp")
    )
    assert whole > optimizer > weights


def test_a_pipeline_is_predicted_only_on_whole_copies() -> None:
    made = [config(strategy="pipeline", num_micro_batches=4)]
    cells = changed(made, Change(num_nodes=(4, 6, 8)), ClusterCalibration(), lambda _: 0.0)
    assert [cell.config.num_replicas for cell in cells] == [1, 2]
