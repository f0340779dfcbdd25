"""Laws of the guard: a run is valid only if the emulation was not the bottleneck, and every reason is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.ledger import Ledger, RoleVolumes
from bench.nodes import guard, layout
from bench.nodes.guard import Counters, Evidence
from bench.nodes.probe import worst_ratio
from strategies.group import SingleGroup
from strategies.volume import Volume

GOOD: dict[str, Any] = {
    "probe_ratio_before": 1.01, "probe_ratio_after": 0.99, "run_delay_share": 0.1, "foreign_cpu_share": 0.02,
    "packet_drops": 0, "retransmitted_share": 0.0, "tcp_timeouts": 0, "link_bursts_per_step": 50.0,
    "link_overlimits": 7,
}  # fmt: skip
IDLE = Counters(
    bytes_sent=13107200, bytes_received=13107200, segments=9000, retransmissions=0, timeouts=0, drops=0, overlimits=5,
    machine_cpu_s=1.0, cpu_s=0.5, wall_s=2.0,
)  # fmt: skip


def node(goodput: float = 25e6, run_delay_share: float = 0.1, **changed: Any) -> Evidence:
    return Evidence(Counters(**{**vars(IDLE), **changed}), goodput, run_delay_share, 1.0, 1.0, napping=True)


def test_a_run_without_disturbance_is_valid() -> None:
    assert guard.invalid_reason(GOOD, {"bytes_sent_per_worker_per_step": 1.002}, {}, 0.0002) == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"probe_ratio_before": 1.06}, "a bare ring took 1.060 times its closed form before the run"),
        ({"probe_ratio_after": 0.94}, "a bare ring took 0.940 times its closed form after the run"),
        ({"run_delay_share": 0.36}, "a rank waited for a core 36% of the time"),
        ({"foreign_cpu_share": 0.5}, "other processes used 50% of the cores"),
        ({"packet_drops": 1}, "packets dropped: 1"),
        ({"retransmitted_share": 0.01}, "1.0% of all segments were retransmitted"),
        ({"tcp_timeouts": 2}, "TCP timeouts: 2"),
        ({"link_overlimits": 0}, "the busiest link was never full"),
    ],
)
def test_each_disturbance_invalidates_and_is_named(changed: dict[str, Any], said: str) -> None:
    assert guard.invalid_reason({**GOOD, **changed}, {}, {}, None) == said


@given(st.floats(0.5, 2.0))
def test_the_wires_bytes_must_match_the_counted_bytes(ratio: float) -> None:
    complaint = guard.invalid_reason(GOOD, {"bytes_sent_per_worker_per_step": ratio}, {}, None)
    assert bool(complaint) == (ratio < 0.99 or ratio > 1.06)
    few = {**GOOD, "link_bursts_per_step": 9.0, "link_overlimits": 0}
    assert guard.invalid_reason(few, {"bytes_sent_per_worker_per_step": ratio}, {}, None) == ""


@given(st.floats(1.0, 2.0), st.floats(0.0, 0.5))
def test_headers_of_small_messages_are_allowed_for(ratio: float, share: float) -> None:
    name = "bytes_sent_per_worker_per_step"
    assert bool(guard.invalid_reason(GOOD, {name: ratio}, {name: share}, None)) == (ratio > 1.06 + share)


def test_sleeping_too_long_invalidates() -> None:
    assert guard.invalid_reason(GOOD, {}, {}, 0.0012) == "emulated compute slept 1.20 ms too long (p95)"


def test_columns_show_the_worst_node() -> None:
    found = guard.to_columns([node(), node(run_delay_share=0.5, drops=3, timeouts=1)], steps=2)
    assert found["run_delay_share"] == 0.5
    assert (found["packet_drops"], found["tcp_timeouts"]) == (3, 1)


def test_the_busiest_link_has_the_most_bytes_per_goodput() -> None:
    found = guard.to_columns([node(overlimits=9), node(goodput=1e6, overlimits=4)], steps=2)
    assert found["link_overlimits"] == 4
    assert found["link_bursts_per_step"] == 50


def test_foreign_cpu_is_the_machines_less_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard.os, "cpu_count", lambda: 2)
    found = guard.to_columns([node(cpu_s=0.5, machine_cpu_s=2.0), node(cpu_s=1.0, machine_cpu_s=2.0)], steps=1)
    assert found["foreign_cpu_share"] == pytest.approx(0.5 / 2.0 / 2)


def wait_until_idle(monkeypatch: pytest.MonkeyPatch, samples: list[tuple[float, float]], patience_s: float) -> float:
    """Return one rank's result, given the ring's ratio and the machine's CPU seconds in each sample of 0.3 s."""
    now = [0.0]
    remaining = iter(samples)
    current = [next(remaining)]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def probe(*_: object) -> float:
        ratio, machine_cpu_s = current[0]
        cpu_s[0] += machine_cpu_s
        current[0] = next(remaining, current[0])
        return ratio

    cpu_s = [0.0]
    monkeypatch.setattr(guard.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(guard.time, "sleep", sleep)
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(guard, "_probe", probe)
    nothing = replace(IDLE, cpu_s=0.0)
    monkeypatch.setattr(guard, "read_counters", lambda: replace(nothing, machine_cpu_s=cpu_s[0], wall_s=now[0]))
    return guard._wait_until_idle(SingleGroup(), layout.make("x", 1, "200mbit"), patience_s)


def test_a_run_waits_until_links_and_cores_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, slow, good = (1.0, 0.5), (1.5, 0.0), (1.02, 0.0)
    assert wait_until_idle(monkeypatch, [slow, good], 20) == 1.02
    assert wait_until_idle(monkeypatch, [busy, busy, good], 20) == 1.0
    assert wait_until_idle(monkeypatch, [slow, good], 0) == 1.5
    assert wait_until_idle(monkeypatch, [(1.5, 0.0), (1.3, 0.0)], 2) == 1.3


def test_on_uneven_links_the_receiver_of_the_slowest_decides() -> None:
    even = layout.make("x", 3, "200mbit")
    assert worst_ratio(even, [1.0, 1.2, 1.1]) == 1.2
    uneven = layout.make("x", 3, "n2=20mbit,*=80mbit")
    assert worst_ratio(uneven, [1.01, 1.6, 1.3]) == 1.01


def test_wire_ratios_need_both_counts() -> None:
    worker = RoleVolumes(counted=Volume(100, None, None, None), wire=Volume(102, None, None, None))
    server = RoleVolumes(counted=Volume(None, 0, None, None), wire=Volume(None, 5, None, None))
    assert Ledger(worker, server).wire_ratios() == {"bytes_sent_per_worker_per_step": 1.02}


def test_header_shares_grow_as_messages_shrink() -> None:
    worker = RoleVolumes(counted=Volume(10_000, None, 5, None))
    server = RoleVolumes(counted=Volume(100, None, None, None))
    assert Ledger(worker, server).header_shares() == {
        "bytes_sent_per_worker_per_step": 0.1,
        "bytes_sent_per_server_per_step": 0,
    }


def test_counters_are_read_from_this_machines_kernel() -> None:
    before = guard._table("/proc/net/snmp", "Tcp:")
    assert {"OutSegs", "RetransSegs"} <= set(before)
    assert "TCPTimeouts" in guard._table("/proc/net/netstat", "TcpExt:")
