"""The shortest step that links and computing allow: laws, and a simulation that shares nothing with the formula."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.config import RunConfig
from bench.durations import by_flops
from bench.nodes import limits as found_limits
from bench.nodes.layout import BURST_BYTES, PAYLOAD_SHARE
from bench.nodes.limits import Limits, shortest_step_s
from bench.shape import PRESETS

NODES: dict[str, Any] = {
    "link": "200mbit", "compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2,
    "model": "gpt-micro",
}  # fmt: skip
COLOCATED: dict[str, Any] = {"strategy": "parameter_server", "placement": "colocated"}
BYTES_PER_S = 200e6 / 8 * PAYLOAD_SHARE


def limits(link_factor: float = 1.0, **config: Any) -> Limits:
    made = RunConfig(**{**NODES, **config})
    forward, backward = (0.1, 0.2) if made.compute == "emulated" else (0.0, 0.0)
    return found_limits.limits(made, by_flops(made.gpt, forward, backward, 0.0), link_factor)


def simulated(config: RunConfig, link_s: float) -> float:
    """Send each layer's gradient after its backward, one after the other; the step ends with the last."""
    sizes = {layer: sum(tensors) for layer, tensors in config.gpt.layer_tensors.items()}
    times = by_flops(config.gpt, 0.1, 0.2, 0.0)
    now, link_free = sum(times.forward_s.values()), 0.0
    for layer in reversed(sizes):
        now += times.backward_s[layer]
        link_free = max(link_free, now) + sizes[layer] / sum(sizes.values()) * link_s
    return max(now, link_free)


@pytest.mark.parametrize("shape", PRESETS.values(), ids=str)
def test_layers_hold_all_parameters_in_the_order_of_forward(shape: Any) -> None:
    assert sum(shape.tensors) == shape.num_parameters
    assert list(shape.layer_tensors) == list(by_flops(shape, 1.0, 1.0, 0.0).forward_s)


@given(st.floats(0.01, 100), st.integers(2, 16), st.sampled_from(["ring_allreduce", "mpi_ring", "ddp"]))
def test_an_allreduce_takes_as_long_as_its_gradients_sent_one_after_the_other(
    link_factor: float, num_workers: int, strategy: str
) -> None:
    found = limits(link_factor, strategy=strategy, num_workers=num_workers)
    config = RunConfig(strategy=strategy, num_workers=num_workers, **NODES)
    link_s = 2 * (num_workers - 1) / num_workers * config.wire_bytes / BYTES_PER_S / link_factor
    assert found.worker_link_s == pytest.approx(link_s)
    assert found.min_step_s == pytest.approx(simulated(config, link_s))


@given(st.floats(0.01, 100), st.integers(2, 16))
def test_colocated_servers_wait_at_most_as_long_as_a_ring_of_the_same_volume(factor: float, num_workers: int) -> None:
    ring = limits(factor, strategy="ring_allreduce", num_workers=num_workers)
    servers = limits(factor, num_workers=num_workers, **COLOCATED)
    assert servers.worker_link_s == pytest.approx(ring.worker_link_s)
    assert max(0.3, servers.worker_link_s) <= servers.min_step_s <= ring.min_step_s
    assert limits(2 * factor, num_workers=num_workers, **COLOCATED).min_step_s <= servers.min_step_s


@pytest.mark.parametrize(
    ("workers", "servers", "by"), [(2, 1, "compute"), (3, 1, "server link"), (7, 1, "server link"), (4, 4, "compute")]
)
def test_one_servers_link_carries_every_workers_payload(workers: int, servers: int, by: str) -> None:
    found = limits(strategy="parameter_server", num_workers=workers, num_servers=servers)
    payload = RunConfig(**NODES).wire_bytes
    assert found.server_link_s == pytest.approx(workers / servers * payload / BYTES_PER_S)
    assert found.worker_link_s == pytest.approx(payload / BYTES_PER_S)
    assert found.bounded_by == by


def test_a_hot_tensor_is_ready_last_and_needed_first_so_that_it_crosses_its_servers_link_alone() -> None:
    served: dict[str, Any] = {"strategy": "parameter_server", "num_workers": 4, "num_servers": 4, "vocab_size": 16_384}
    hot_s = 4 * 4 * 16_384 * 128 / BYTES_PER_S  # workers, bytes per number, rows, columns
    whole, ranges = (limits(**served, sharding=sharding) for sharding in ("tensors", "ranges"))
    assert whole.server_link_s == pytest.approx(hot_s)  # the other servers share what is left
    assert whole.min_step_s == pytest.approx(0.3 + hot_s)
    assert 0.3 + hot_s / 4 < ranges.min_step_s < whole.min_step_s / 2
    alone = served | {"num_servers": 1}
    assert vars(limits(**alone, sharding="tensors")) == pytest.approx(vars(limits(**alone, sharding="ranges")))


def test_what_shares_a_bucket_with_the_embedding_is_ready_last_and_needed_first() -> None:
    zero: dict[str, Any] = {"strategy": "zero", "num_workers": 8}
    servers = limits(num_workers=8, **COLOCATED)
    small, usual, whole = (limits(**zero, segment_bytes=size).min_step_s for size in (64, 64 << 10, 1 << 20))
    assert small == pytest.approx(servers.min_step_s, rel=1e-3)
    assert whole == pytest.approx(0.3 + servers.worker_link_s)  # one bucket: nothing overlaps
    num_buckets = 7  # of at most 8 x 64 KiB
    assert 0.3 + servers.worker_link_s / num_buckets <= usual < whole


def test_without_computing_the_link_alone_counts_and_a_servers_link_may_be_its_own() -> None:
    none = {"compute": "none", "emulated_forward_s": None, "emulated_backward_s": None}
    served = limits(strategy="parameter_server", num_workers=4, num_servers=1, link="server=400mbit,*=100mbit", **none)
    assert served.server_link_s == pytest.approx(served.worker_link_s)  # four times the bytes at four times the rate
    assert served.min_step_s == max(served.server_link_s, served.worker_link_s)
    assert limits(strategy="ring_allreduce", num_workers=2, **none).bounded_by == "network"


def test_a_slow_worker_and_asynchronous_servers() -> None:
    ring = limits(strategy="ring_allreduce", num_workers=2, speed_factor="1=0.5")
    assert ring.compute_s == pytest.approx(0.6)
    asynchronous = limits(strategy="parameter_server", num_workers=2, num_servers=1, consistency="asp")
    assert asynchronous.min_step_s == max(asynchronous.compute_s, asynchronous.server_link_s)


def test_no_undisturbed_step_is_shorter_than_its_limits_but_for_one_token_bucket() -> None:
    burst_s = BURST_BYTES * 8 / 200e6
    for cell in (
        {"strategy": "ring_allreduce", "num_workers": 8},
        {"num_workers": 8, **COLOCATED},
        {"strategy": "parameter_server", "num_workers": 7, "num_servers": 1},
        {"strategy": "local"},
    ):
        config = RunConfig(**{**NODES, "emulated_optimizer_s": 0.0, **cell})
        at_least, found = shortest_step_s(config, None), limits(**cell)
        assert at_least is not None
        assert found.min_step_s - burst_s <= at_least <= found.min_step_s
        assert at_least >= max(found.compute_s, found.worker_link_s)
        assert not at_least < found.server_link_s  # a full link is never idle


@pytest.mark.parametrize(
    "unknown",
    [
        {"compute": "real", "emulated_forward_s": None, "emulated_backward_s": None},
        {"compute_cv": 0.1},  # a lucky run is shorter
        {"link": None},
        {"strategy": "pipeline", "model_parallel_size": 2},
    ],
    ids=str,
)
def test_where_compute_or_links_are_not_known_a_step_may_be_as_short_as_it_likes(unknown: dict[str, Any]) -> None:
    ring = {"strategy": "ring_allreduce", "num_workers": 2}
    assert shortest_step_s(RunConfig(**{**NODES, **ring, **unknown}), None) is None
    assert shortest_step_s(RunConfig(**NODES, **ring), "not_ring") is None
