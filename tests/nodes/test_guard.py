"""Laws of the guard: a run is rejected for what the strategy cannot cause, and every reason is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.ledger import Ledger, RoleVolumes
from bench.nodes import guard, layout
from bench.nodes.cpu import IDLE, CpuUse
from bench.nodes.guard import Counters, Evidence
from bench.nodes.probe import worst_ratio
from strategies.group import SingleGroup
from strategies.volume import Volume

GOOD: dict[str, Any] = {
    "probe_ratio_before": 1.01, "probe_ratio_after": 0.99, "run_delay_share": 0.1, "foreign_cpu_share": 0.02,
    "packet_drops": 0, "retransmitted_share": 0.0, "tcp_timeouts": 0, "link_bursts_per_step": 50.0,
    "link_overlimits": 7,
}  # fmt: skip
LIMIT = 0.15
COUNTED = Counters(
    bytes_sent=13107200, bytes_received=13107200, segments=9000, retransmissions=0, timeouts=0, drops=0, overlimits=5,
)  # fmt: skip


def node(goodput: float = 25e6, **changed: Any) -> Evidence:
    return Evidence(Counters(**{**vars(COUNTED), **changed}), goodput, 1.0, 1.0, napping=True)


def reject(columns: dict[str, Any], *more: Any) -> str:
    return guard.rejection(columns, LIMIT, *more)


def test_a_run_without_disturbance_is_accepted() -> None:
    assert reject(GOOD, {"bytes_sent_per_worker_per_step": 1.002}) == ""
    assert reject({"foreign_cpu_share": 0.02, "run_delay_share": 0.5}) == ""  # on one machine without emulated nodes
    assert reject({"foreign_cpu_share": None, "run_delay_share": 0.5}) == ""  # too short to tell


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"probe_ratio_before": 1.06}, "a bare ring took 1.060 times its closed form before the run"),
        ({"foreign_cpu_share": 0.5}, "other processes used 50% of the cores"),
        ({"packet_drops": 1}, "packets dropped: 1"),
        ({"retransmitted_share": 0.01}, "1.0% of all segments were retransmitted"),
        ({"tcp_timeouts": 2}, "TCP timeouts: 2"),
    ],
)
def test_each_outside_cause_rejects_and_is_named(changed: dict[str, Any], said: str) -> None:
    assert reject({**GOOD, **changed}) == said


OUTSIDE = st.fixed_dictionaries({
    "probe_ratio_before": st.floats(0.8, 1.3), "packet_drops": st.integers(0, 2),
    "retransmitted_share": st.floats(0, 0.01), "tcp_timeouts": st.integers(0, 2),
})  # fmt: skip
# What a strategy may cause itself: CPU of its own, waits for a core, idle threads during the probe after, late layers.
OWN = st.fixed_dictionaries({
    "probe_ratio_after": st.floats(0.8, 3.0), "run_delay_share": st.floats(0, 1), "link_overlimits": st.integers(0, 9),
    "link_bursts_per_step": st.floats(10, 1000), "sleep_overshoot_s_p95": st.floats(0, 1), "own_s": st.floats(0, 2),
})  # fmt: skip


@given(OUTSIDE, st.floats(0, 0.5), st.tuples(OWN, OWN))
def test_at_equal_disturbance_no_strategy_is_rejected_more(
    outside: dict[str, Any], foreign: float, own: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    found = []
    for arm in own:
        used = [CpuUse(arm["own_s"] + 2 * 2 * foreign, arm["own_s"], 2.0, 2, arm["run_delay_share"])]
        columns = {**arm, **guard.cpu_columns(used), **outside}
        columns["foreign_cpu_share"] = round(columns["foreign_cpu_share"], 9)
        found.append(reject(columns))
    assert found[0] == found[1]


@given(st.floats(0.5, 2.0))
def test_the_wires_bytes_must_match_the_counted_bytes(ratio: float) -> None:
    complaint = reject(GOOD, {"bytes_sent_per_worker_per_step": ratio})
    assert bool(complaint) == (ratio < 0.99 or ratio > 1.06)
    few = {**GOOD, "link_bursts_per_step": 9.0, "link_overlimits": 0}
    assert reject(few, {"bytes_sent_per_worker_per_step": ratio}) == ""


@given(st.floats(1.0, 2.0), st.floats(0.0, 0.5))
def test_headers_of_small_messages_are_allowed_for(ratio: float, share: float) -> None:
    name = "bytes_sent_per_worker_per_step"
    assert bool(reject(GOOD, {name: ratio}, {name: share})) == (ratio > 1.06 + share)


def test_a_disturbance_is_a_share_of_the_runs_time() -> None:
    quiet: dict[str, Any] = {"foreign_cpu_share": 0.0, "probe_ratio_before": 1.0, "tcp_timeouts": 0}
    waiting = [replace(IDLE, run_delay_share=0.2), replace(IDLE, run_delay_share=0.3)]

    def share(**changed: Any) -> float:
        return guard.disturbance(waiting, {**quiet, **changed}, steps_s=10.0)

    assert share() == 0
    assert share(foreign_cpu_share=0.2) == pytest.approx(0.25)
    assert share(foreign_cpu_share=0.9) == pytest.approx(1.0)  # no more than the ranks waited
    assert guard.disturbance([IDLE], {**quiet, "foreign_cpu_share": 0.9}, 10.0) == 0
    assert share(probe_ratio_before=1.3) == pytest.approx(0.3)
    assert share(tcp_timeouts=5) == pytest.approx(0.1)
    assert guard.disturbance(waiting, {"foreign_cpu_share": None}, 10.0) == 0


@given(st.floats(-0.1, 2.0), st.floats(0.0, 1.0))
def test_nothing_slowed_a_run_by_more_than_it_took_above_its_shortest_time(above: float, foreign: float) -> None:
    ranks = [replace(IDLE, run_delay_share=1.0)]
    found = guard.disturbance(ranks, {"foreign_cpu_share": foreign}, 10.0, above)
    assert found == min(max(0.0, above), guard.disturbance(ranks, {"foreign_cpu_share": foreign}, 10.0))


def test_columns_show_the_worst_node() -> None:
    found = guard.link_columns([node(), node(drops=3, timeouts=1)], steps=2)
    assert (found["packet_drops"], found["tcp_timeouts"]) == (3, 1)
    assert guard.cpu_columns([IDLE, replace(IDLE, run_delay_share=0.5)])["run_delay_share"] == 0.5


def test_the_busiest_link_has_the_most_bytes_per_goodput() -> None:
    found = guard.link_columns([node(overlimits=9), node(goodput=1e6, overlimits=4)], steps=2)
    assert found["link_overlimits"] == 4
    assert found["link_bursts_per_step"] == 50


PROBE_S = 0.3


def wait_until_idle(monkeypatch: pytest.MonkeyPatch, samples: list[tuple[float, float]], patience_s: float) -> float:
    """Return one rank's result, given the ring's ratio and the machine's CPU seconds in each sample of 0.3 s."""
    now = [0.0]
    remaining = iter(samples)
    current = [next(remaining)]

    def probe(*_: object) -> float:
        now[0] += PROBE_S
        ratio, machine_cpu_s = current[0]
        cpu_s[0] += machine_cpu_s
        current[0] = next(remaining, current[0])
        return ratio

    class Monitor:
        def __init__(self) -> None:
            self.begin, self.before = now[0], cpu_s[0]

        def end(self) -> CpuUse:
            return CpuUse(cpu_s[0] - self.before, 0.0, now[0] - self.begin, 2, 0.0)

    cpu_s = [0.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(guard, "_ring", probe)
    monkeypatch.setattr(guard, "CpuMonitor", Monitor)
    return guard._wait_until_idle(SingleGroup(), layout.make("x", 1, "200mbit"), patience_s, LIMIT)


def test_a_run_waits_until_links_and_cores_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, slow, good = (1.0, 0.5), (1.5, 0.0), (1.02, 0.0)
    assert wait_until_idle(monkeypatch, [slow, good], 20) == 1.02
    assert wait_until_idle(monkeypatch, [busy, busy, good], 20) == 1.0
    assert wait_until_idle(monkeypatch, [slow, good], 0) == 1.5
    assert wait_until_idle(monkeypatch, [(1.5, 0.0), (1.3, 0.0)], 2) == 1.3


def test_the_probe_after_a_run_serves_the_next_unless_it_is_old_or_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard.time, "monotonic", lambda: 100.0)
    recent = guard.Probe(1.02, foreign_share=0.1, ended_at=99.0)
    assert guard._recent_ratio(recent, max_foreign_cpu_share=0.15) == 1.02
    assert guard._recent_ratio(recent, max_foreign_cpu_share=0.05) is None
    assert guard._recent_ratio(guard.Probe(1.2, 0.1, 99.0), 0.15) is None
    assert guard._recent_ratio(guard.Probe(1.02, 0.1, 90.0), 0.15) is None
    assert guard._recent_ratio(None, 0.15) is None


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
