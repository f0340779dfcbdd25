"""Laws of the predicted step: limits that are known, and the direction in which each quantity moves it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import ledger
from bench.config import BadInput, RunConfig, make_config
from bench.predict import Breakdown, Cell, ClusterCalibration, step_time
from bench.predict.compute import expected_maximum
from bench.predict.fit import fit
from bench.predict.measured import read

FREE: dict[str, Any] = {
    "latency_s": 0.0, "message_cpu_s": 0.0, "add_s_per_byte": 0.0, "copy_s_per_byte": 0.0, "payload_share": 1.0,
}  # fmt: skip
SYNCHRONOUS = [
    {"strategy": "ring_allreduce", "cycle_time_s": 1e-9},
    {"strategy": "mpi_ring"},
    {"strategy": "ddp"},
    {"strategy": "parameter_server", "num_servers": 1},
    {"strategy": "parameter_server", "num_servers": 2},
    {"strategy": "parameter_server", "placement": "colocated"},
    {"strategy": "parameter_server", "placement": "mixed", "num_servers": 2},
    {"strategy": "zero"},
    {"strategy": "fsdp"},
]
ANY = st.sampled_from(SYNCHRONOUS)


def config(**knobs: Any) -> RunConfig:
    sleeping = {"compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2,
                "emulated_optimizer_s": 0.001}  # fmt: skip
    return make_config({"strategy": "independent", "model": "gpt-micro", "link": "200mbit", "num_workers": 4,
                        **sleeping, **knobs}, "test")  # fmt: skip


def step(free: dict[str, Any] = FREE, cell: dict[str, Any] | None = None, **knobs: Any) -> Breakdown:
    return step_time(Cell(config(**knobs), **(cell or {})), ClusterCalibration(**free))


def payload_s(found: RunConfig) -> float:
    """Seconds that one payload takes on the test's link: M/B."""
    return found.wire_bytes / (200e6 / 8)


@pytest.mark.parametrize("knobs", [s for s in SYNCHRONOUS if not s.get("num_servers")])
def test_one_worker_takes_its_compute(knobs: dict[str, Any]) -> None:
    found = step(num_workers=1, **knobs)
    assert found.exposed_communication_s == pytest.approx(0, abs=1e-12)
    assert found.step_s == pytest.approx(0.3 + found.compute_s - 0.3)


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_servers_of_their_own_from_none_to_all_lead_from_the_ring_to_one_payload(k: int) -> None:
    """In units of M/B: 1.500, 1.333, 1.200, 1.091, 1.000 (Jiang et al., OSDI 2020)."""
    placement = {"placement": "mixed", "num_servers": k} if k else {"placement": "colocated"}
    nothing = {"emulated_forward_s": 0.0, "emulated_backward_s": 0.0, "emulated_optimizer_s": 0.0}
    found = step(strategy="parameter_server", window_bytes="none", **nothing, **placement)
    expected = [1.5, 4 / 3, 1.2, 12 / 11, 1.0][k] * payload_s(config())
    assert max(found.worker_link_s, found.server_link_s or 0) == pytest.approx(expected)
    assert found.step_s == pytest.approx(expected, rel=0.1)  # and the pipeline's fill


def test_dedicated_servers_cannot_be_faster_than_their_links() -> None:
    found = step(strategy="parameter_server", num_workers=8, num_servers=2)
    assert found.server_link_s == pytest.approx(4 * payload_s(config()))
    assert found.step_s >= found.server_link_s


@settings(max_examples=40, deadline=None)
@given(ANY, st.integers(2, 64), st.floats(20, 2000), st.floats(1.05, 10))
def test_a_faster_link_never_lengthens_a_step(knobs: dict[str, Any], n: int, mbit: float, factor: float) -> None:
    slow, fast = (step(num_workers=n, link=f"{rate:.3f}mbit", **knobs) for rate in (mbit, mbit * factor))
    assert fast.step_s <= slow.step_s * 1.001


@settings(max_examples=40, deadline=None)
@given(ANY, st.integers(2, 64), st.integers(2, 16))
def test_a_larger_payload_never_shortens_a_step(knobs: dict[str, Any], n: int, layers: int) -> None:
    half, whole = (step(num_workers=n, n_layer=layers, wire_dtype=dtype, **knobs) for dtype in ("fp16", "fp32"))
    assert half.step_s <= whole.step_s * 1.001


@settings(max_examples=40, deadline=None)
@given(ANY, st.integers(2, 64), st.integers(1, 64))
def test_more_workers_never_shorten_a_step(knobs: dict[str, Any], n: int, more: int) -> None:
    few, many = (step(num_workers=number, **knobs) for number in (n, n + more))
    if knobs.get("placement") != "mixed":  # its split between ranks changes with n
        assert few.step_s <= many.step_s * 1.01


@pytest.mark.parametrize("knobs", SYNCHRONOUS)
def test_a_step_lies_between_its_longest_part_and_their_sum(knobs: dict[str, Any]) -> None:
    found = step(**knobs)
    links = max(found.worker_link_s, found.server_link_s or 0)
    assert max(found.compute_s, links) <= found.step_s <= found.compute_s + 2 * links + 0.01
    assert found.step_s == pytest.approx(found.compute_s + found.straggler_s + found.exposed_communication_s)


def test_no_bound_on_staleness_below_one_step_is_bulk_synchronous() -> None:
    bsp = step(strategy="parameter_server", num_servers=1)
    assert step(strategy="parameter_server", num_servers=1, consistency="ssp", staleness=0).step_s == bsp.step_s


def test_the_link_carries_what_the_ledger_predicts() -> None:
    for knobs in SYNCHRONOUS:
        found, told = step(**knobs), ledger.predict(config(**knobs)).worker
        assert found.worker_link_s == pytest.approx((told.bytes_sent or 0) / (200e6 / 8), rel=0.01), knobs


def test_half_duplex_doubles_the_exchange_through_one_link() -> None:
    for knobs in SYNCHRONOUS:
        full, half = step(**knobs), step(FREE | {"duplex_factor": 2.0}, **knobs)
        assert half.worker_link_s == pytest.approx(2 * full.worker_link_s), knobs


def test_ranks_of_a_node_that_add_up_first_share_one_link() -> None:
    flat = step(strategy="ring_allreduce", num_workers=8)
    levels = step(FREE | {"local_bytes_per_s": 1e12}, {"ranks_per_node": 2}, strategy="ring_allreduce", num_workers=8)
    four = step(strategy="ring_allreduce", num_workers=4)
    assert levels.worker_link_s == pytest.approx(four.worker_link_s)
    assert levels.worker_link_s < flat.worker_link_s
    assert levels.local_link_s == pytest.approx(config().wire_bytes / 1e12)  # 2(G-1)/G = 1


def test_other_allreduces_send_what_their_closed_forms_say() -> None:
    def copies(n: int, algorithm: str) -> float:
        found = step(cell={"algorithm": algorithm}, strategy="ring_allreduce", num_workers=n)
        return found.worker_link_s / payload_s(config())

    assert copies(8, "rabenseifner") == pytest.approx(2 * 7 / 8) == copies(8, "ring")
    assert copies(3, "rabenseifner") == pytest.approx(2.5)  # 40 MB of a payload of 16 MB were counted
    assert copies(8, "recursive_doubling") == pytest.approx(3)


def test_whole_tensors_make_the_server_of_the_largest_the_bottleneck() -> None:
    def served(sharding: str, **knobs: Any) -> Breakdown:
        return step(strategy="parameter_server", num_servers=4, vocab_size=16_384, sharding=sharding, **knobs)

    one = config(vocab_size=16_384).gpt
    hot_s = 4 * max(one.tensors) / one.num_parameters * payload_s(config(vocab_size=16_384))
    assert served("tensors").server_link_s == pytest.approx(hot_s)
    assert served("tensors").step_s > served("ranges").step_s + hot_s / 2
    mixed = served("tensors", placement="mixed", num_workers=8)
    assert mixed.server_link_s == pytest.approx(2 * hot_s)  # one of the servers has it, for 8 workers


def test_a_window_is_full_of_chunks_for_the_one_server_that_all_send_to() -> None:
    """Whole tensors: while all workers send one tensor to its server, a window holds back those of other servers."""

    def served(sharding: str, window: object) -> float:
        knobs: dict[str, Any] = {"num_servers": 2, "vocab_size": 4096, "n_layer": 2, "emulated_backward_s": 0.1}
        return step(strategy="parameter_server", sharding=sharding, window_bytes=window, **knobs).step_s

    assert served("tensors", 400_000) > 1.03 * served("tensors", "none")
    assert served("tensors", 10**9) == pytest.approx(served("tensors", "none"))
    assert served("ranges", 400_000) == pytest.approx(served("ranges", "none"), rel=0.01)


def test_whole_tensors_are_as_slow_as_they_were_measured() -> None:
    """The study of hot tensors, its fit without them: the form knows what ranges do not show."""
    study = read(Path(__file__).parents[2] / "results/2026-11-26-hot-tensor")
    fitted = fit([one for one in study if one.config.sharding == "ranges"]).calibration
    whole = [one for one in study if one.config.sharding == "tensors"]
    errors = [step_time(one.cell, fitted).step_s / one.step_s - 1 for one in whole]
    assert len(errors) == 6
    assert max(map(abs, errors)) < 0.095
    assert sum(map(abs, errors)) / len(errors) < 0.05


def test_a_step_waits_for_the_slowest_worker() -> None:
    found = step(strategy="mpi_ring", link="10gbit", speed_factor="3=0.5")
    assert found.straggler_s == pytest.approx(0.3, rel=0.02)
    noisy = step(strategy="mpi_ring", link="10gbit", compute_cv=0.1)
    assert noisy.straggler_s == pytest.approx((expected_maximum(4, 0.1) - 1) * 0.3, rel=0.02)


def test_what_has_no_model_is_refused() -> None:
    with pytest.raises(BadInput, match="no rate is known"):
        step(strategy="mpi_ring", link=None)
    with pytest.raises(BadInput, match="give --device"):
        step_time(Cell(make_config({"strategy": "local"}, "test")), ClusterCalibration())


def test_it_needs_neither_torch_nor_mpi() -> None:
    code = (
        "import sys; import bench.predict; print({'torch', 'mpi4py', 'horovod', 'pandas', 'scipy'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "set()"
