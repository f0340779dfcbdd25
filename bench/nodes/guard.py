"""Whether something outside a run disturbed it: other processes on the cores, or emulated links that misbehaved.

Every rank reads counters before and after a run; all differences decide together. A run is rejected only for what the
strategy under test cannot cause: otherwise the slow launches of a strategy that needs more of the machine would vanish,
and the rest would look fast. What a strategy causes itself (threads that wait for a core, layers that sleep too long, a
link that it cannot fill) is a cost: a column beside its speed. A rejected run keeps its numbers.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from bench.config import CLUSTER_VARIABLE
from bench.nodes import cpu, nap
from bench.nodes.cpu import CpuMonitor, CpuUse
from bench.nodes.layout import BURST_BYTES, INTERFACE, Cluster, find
from bench.nodes.link import bytes_on_link
from bench.nodes.probe import TOLERANCE, ring_ratio, worst_ratio
from strategies.group import Group

# Bytes that the kernel counts over bytes that the strategies count: frames add headers, a segment may be split.
MIN_WIRE_RATIO, MAX_WIRE_RATIO = 0.99, 1.06
# With less data per step and link (in units of the token bucket), headers and barriers outweigh the payload.
MIN_BURSTS = 10
MAX_PROBE_AGE_S = 3.0  # of the probe after a run that also serves as the one before the next
# TCP's tail loss probe sends the last segment of a burst again: a few retransmissions are no loss. A timeout is.
MAX_RETRANSMITTED_SHARE = 1e-3
RETRANSMISSION_TIMEOUT_S = 0.2  # the shortest that Linux waits (TCP_RTO_MIN)


@dataclass(frozen=True)
class Counters:
    """The kernel's counters of one node: at one moment, or their increase between two."""

    bytes_sent: int
    bytes_received: int
    segments: int
    retransmissions: int
    timeouts: int
    drops: int
    overlimits: int  # how often the shaped link delayed a packet

    def increase(self, later: Counters) -> Counters:
        """Return what has been added up to a later reading."""
        return Counters(**{name: value - getattr(self, name) for name, value in asdict(later).items()})


@dataclass(frozen=True)
class Evidence:
    """What one node's monitor found in one run: the counters' increase, and the link probes before and after."""

    counters: Counters
    goodput: float  # of this node's link, bytes per second
    probe_ratio_before: float
    probe_ratio_after: float
    napping: bool


class Monitor:
    """Monitors one node during one run. Collective: every rank creates it and calls `end`.

    Creating it waits until the links reach their rate and no other process uses the machine, at most `patience_s`. What
    was seen right after the run before in the same launch counts, too.
    """

    _after: ClassVar[Probe | None] = None  # of the run before in this launch

    def __init__(self, ranks: Group, patience_s: float, max_foreign_cpu_share: float) -> None:
        self._ranks = ranks
        self._cluster = find(os.environ[CLUSTER_VARIABLE])
        recent = ranks.broadcast(_recent_ratio(Monitor._after, max_foreign_cpu_share))
        self._before = recent or _wait_until_idle(ranks, self._cluster, patience_s, max_foreign_cpu_share)
        self._begin = read_counters()

    def end(self) -> Evidence:
        """Return what happened on this node since the monitor was created."""
        counters = self._begin.increase(read_counters())
        Monitor._after = probe = _probe(self._ranks, self._cluster)
        return Evidence(
            counters=counters,
            goodput=self._cluster.goodput(self._cluster.nodes[self._ranks.rank]),
            probe_ratio_before=self._before,
            probe_ratio_after=probe.ratio,
            napping=nap.is_loaded(),
        )


@dataclass(frozen=True)
class Probe:
    """A bare ring over all nodes: its time over the closed form, and what others used of the cores meanwhile."""

    ratio: float  # the same on every rank
    foreign_share: float | None  # on rank 0
    ended_at: float  # time.monotonic()

    def is_idle(self, max_foreign_cpu_share: float) -> bool:
        """Return whether the links reached their rate and others left the cores alone."""
        return abs(self.ratio - 1) <= TOLERANCE and (self.foreign_share or 0.0) <= max_foreign_cpu_share


def _recent_ratio(probe: Probe | None, max_foreign_cpu_share: float) -> float | None:
    """Return a probe's ratio if it is recent, and nothing disturbed it; else None."""
    if probe is None or time.monotonic() - probe.ended_at > MAX_PROBE_AGE_S or not probe.is_idle(max_foreign_cpu_share):
        return None
    return probe.ratio


def _wait_until_idle(ranks: Group, cluster: Cluster, patience_s: float, max_foreign_cpu_share: float) -> float:
    """Probe until the links reach their rate and other processes use few cores; return the best ratio. Collective."""
    deadline, best = time.monotonic() + patience_s, float("inf")
    while True:
        probe = _probe(ranks, cluster)
        best = min(best, probe.ratio, key=lambda ratio: abs(ratio - 1))
        if ranks.broadcast(probe.is_idle(max_foreign_cpu_share) or time.monotonic() > deadline):
            return best


def _probe(ranks: Group, cluster: Cluster) -> Probe:
    """Run a bare ring, and sample the use of the cores meanwhile. Collective."""
    monitor = CpuMonitor()
    ratio = _ring(ranks, cluster)
    used = ranks.gather(monitor.end())
    foreign_share = cpu.foreign_share(used, min_window_s=0.0) if used else None
    return Probe(ratio, foreign_share, time.monotonic())


def _ring(ranks: Group, cluster: Cluster) -> float:
    """Return the ring's time over its closed form, the same on every rank. Collective."""
    participating = replace(cluster, rates=cluster.rates[: ranks.size])
    ranks.barrier()
    ratios = ranks.gather(ring_ratio(participating, ranks.rank))
    return float(ranks.broadcast(worst_ratio(participating, ratios) if ratios else 0.0))


def read_counters() -> Counters:
    """Read this node's counters."""
    sent, received = bytes_on_link() or (0, 0)
    tcp = {**_table("/proc/net/snmp", "Tcp:"), **_table("/proc/net/netstat", "TcpExt:")}
    drops, overlimits = _queue()
    return Counters(
        bytes_sent=sent,
        bytes_received=received,
        segments=tcp["OutSegs"],
        retransmissions=tcp["RetransSegs"],
        timeouts=tcp["TCPTimeouts"],
        drops=drops,
        overlimits=overlimits,
    )


def _table(path: str, name: str) -> dict[str, int]:
    """The counters of one protocol: a line of names, then a line of values (proc(5))."""
    names, values = (line.split()[1:] for line in Path(path).read_text().splitlines() if line.split()[0] == name)
    return dict(zip(names, map(int, values), strict=True))


def _queue() -> tuple[int, int]:
    """Packets that this node's shaped link has dropped, and how often it delayed one."""
    from pyroute2 import IPRoute  # imported here: slow, and needed on emulated nodes only

    with IPRoute() as here:
        (index,) = here.link_lookup(ifname=INTERFACE)
        queues = [queue.get_attr("TCA_STATS2") for queue in here.get_qdiscs(index)]
    counts = [queue.get_attr("TCA_STATS_QUEUE") for queue in queues]
    return sum(count["drops"] for count in counts), sum(count["overlimits"] for count in counts)


def cpu_columns(ranks: Sequence[CpuUse]) -> dict[str, float | None]:
    """Return the columns about the cores of one machine that all ranks share."""
    return {
        "run_delay_share": max(rank.run_delay_share for rank in ranks),
        "foreign_cpu_share": cpu.foreign_share(ranks),
    }


def link_columns(nodes: Sequence[Evidence], steps: int) -> dict[str, float | bool]:
    """Return all nodes' evidence as columns of one row: summed counts, and the busiest link's load."""
    counters = [node.counters for node in nodes]
    busiest = max(nodes, key=lambda node: node.counters.bytes_sent / node.goodput)
    return {
        "probe_ratio_before": nodes[0].probe_ratio_before,
        "probe_ratio_after": nodes[0].probe_ratio_after,
        "packet_drops": sum(each.drops for each in counters),
        "retransmitted_share": sum(each.retransmissions for each in counters)
        / max(1, sum(each.segments for each in counters)),
        "tcp_timeouts": sum(each.timeouts for each in counters),
        "link_bursts_per_step": busiest.counters.bytes_sent / steps / BURST_BYTES,
        "link_overlimits": busiest.counters.overlimits,
        "napping": all(node.napping for node in nodes),
    }


def disturbance(
    ranks: Sequence[CpuUse], columns: Mapping[str, Any], steps_s: float, above_shortest: float = math.inf
) -> float:
    """Return by which share of its time others may have slowed a run at most: the largest of three estimates.

    Others' share f of the cores leaves 1 - f for the run, but they cannot have delayed it by more than its ranks waited
    for a core; the bare ring before it was longer than its closed form; each TCP timeout stopped a connection.
    `columns` are those of `cpu_columns` and `link_columns`, `steps_s` the seconds of all steps. Nothing can have slowed
    a run by more than `above_shortest`, the share of time that it took more than its links and its compute need.
    """
    foreign, delayed = columns["foreign_cpu_share"] or 0.0, sum(rank.run_delay_share for rank in ranks)
    share = min(foreign, delayed, 0.99)
    stopped_s = RETRANSMISSION_TIMEOUT_S * float(columns.get("tcp_timeouts", 0))
    probe = float(columns.get("probe_ratio_before", 1.0))
    return min(max(share / (1 - share), abs(probe - 1), stopped_s / steps_s), max(0.0, above_shortest))


def rejection(
    columns: Mapping[str, Any], max_foreign_cpu_share: float,
    wire_ratios: Mapping[str, float] | None = None, header_shares: Mapping[str, float] | None = None,
) -> str:  # fmt: skip
    """Return why a run is rejected, an empty string if it is not.

    `columns` are those of `cpu_columns`, and on emulated nodes those of `link_columns`; `wire_ratios` the wire's over
    the counted bytes by direction and role; `header_shares` what headers of small messages may add to these ratios.
    """
    foreign = columns["foreign_cpu_share"] or 0.0
    checks = [(f"other processes used {foreign:.0%} of the cores", foreign > max_foreign_cpu_share)]
    if "probe_ratio_before" in columns:
        checks += _link_checks(columns, wire_ratios or {}, header_shares or {})
    return "; ".join(text for text, applies in checks if applies)


def _link_checks(
    columns: Mapping[str, Any], wire_ratios: Mapping[str, float], header_shares: Mapping[str, float]
) -> list[tuple[str, bool]]:
    enough = columns["link_bursts_per_step"] >= MIN_BURSTS
    probe, retransmitted = columns["probe_ratio_before"], columns["retransmitted_share"]
    wire = [
        (
            f"{name}: the wire carried {ratio:.3f} times the counted bytes",
            enough and not MIN_WIRE_RATIO <= ratio <= MAX_WIRE_RATIO + header_shares.get(name, 0.0),
        )
        for name, ratio in wire_ratios.items()
    ]
    return [
        *wire,
        (f"a bare ring took {probe:.3f} times its closed form before the run", abs(probe - 1) > TOLERANCE),
        (f"packets dropped: {columns['packet_drops']}", columns["packet_drops"] > 0),
        (f"{retransmitted:.1%} of all segments were retransmitted", retransmitted > MAX_RETRANSMITTED_SHARE),
        (f"TCP timeouts: {columns['tcp_timeouts']}", columns["tcp_timeouts"] > 0),
    ]
