"""Whether a run on emulated nodes is valid, or the emulation itself was the bottleneck.

Every rank reads its node's counters before and after a run; all nodes' differences decide together. An invalid run
stays in the tables with its reason, and out of figures and fits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.config import CLUSTER_VARIABLE
from bench.nodes import nap
from bench.nodes.layout import BURST_BYTES, INTERFACE, Cluster, find
from bench.nodes.link import bytes_on_link
from bench.nodes.probe import TOLERANCE, best_ratio, ring_ratio, worst_ratio
from strategies.group import Group

# Bytes that the kernel counts over bytes that the strategies count: frames add headers, a segment may be split.
MIN_WIRE_RATIO, MAX_WIRE_RATIO = 0.99, 1.06
# With less data per step and link (in units of the token bucket), headers and barriers outweigh the payload.
MIN_BURSTS = 10
MAX_RUN_DELAY_SHARE = 0.35
MAX_FOREIGN_CPU_SHARE = 0.15
MAX_SLEEP_OVERSHOOT_S = 1e-3
CPU_SAMPLE_S = 0.3  # over which CPU use is sampled before a run
# TCP's tail loss probe sends the last segment of a burst again: a few retransmissions are no loss. A timeout is.
MAX_RETRANSMITTED_SHARE = 1e-3


@dataclass(frozen=True)
class Counters:
    """The kernel's counters of one node and one process: at one moment, or their increase between two."""

    bytes_sent: int
    bytes_received: int
    segments: int
    retransmissions: int
    timeouts: int
    drops: int
    overlimits: int  # how often the shaped link delayed a packet
    machine_cpu_s: float  # used by all processes, or stolen by the hypervisor
    cpu_s: float  # used by this rank
    wall_s: float

    def increase(self, later: Counters) -> Counters:
        """Return what has been added up to a later reading."""
        return Counters(**{name: value - getattr(self, name) for name, value in asdict(later).items()})


@dataclass(frozen=True)
class Evidence:
    """What one node's monitor found in one run: the counters' increase, and the link probes before and after."""

    counters: Counters
    goodput: float  # of this node's link, bytes per second
    run_delay_share: float  # share of the run that this rank's worst thread spent ready but without a core
    probe_ratio_before: float
    probe_ratio_after: float
    napping: bool


class Monitor:
    """Monitors one node during one run. Collective: every rank creates it and calls `end`.

    Creating it waits until the links reach their rate and no other process uses the machine, at most `patience_s`.
    """

    def __init__(self, ranks: Group, patience_s: float) -> None:
        self._ranks = ranks
        self._cluster = find(os.environ[CLUSTER_VARIABLE])
        self._before = _wait_until_idle(ranks, self._cluster, patience_s)
        self._begin, self._delays = read_counters(), run_delays()

    def end(self) -> Evidence:
        """Return what happened on this node since the monitor was created."""
        counters, delays = self._begin.increase(read_counters()), run_delays()
        longest_s = max(seconds - self._delays.get(thread, 0.0) for thread, seconds in delays.items())
        return Evidence(
            counters=counters,
            goodput=self._cluster.goodput(self._cluster.nodes[self._ranks.rank]),
            run_delay_share=longest_s / counters.wall_s,
            probe_ratio_before=self._before,
            probe_ratio_after=best_ratio(lambda: _probe(self._ranks, self._cluster)),
            napping=nap.is_loaded(os.environ),
        )


def _wait_until_idle(ranks: Group, cluster: Cluster, patience_s: float) -> float:
    """Probe until the links reach their rate and other processes use few cores; return the best ratio. Collective."""
    deadline, best = time.monotonic() + patience_s, float("inf")
    while True:
        begin = read_counters()
        time.sleep(CPU_SAMPLE_S)
        ratio = _probe(ranks, cluster)
        counters = ranks.gather(begin.increase(read_counters()))
        best = min(best, ratio, key=lambda ratio: abs(ratio - 1))
        idle = abs(ratio - 1) <= TOLERANCE and (not counters or foreign_cpu_share(counters) <= MAX_FOREIGN_CPU_SHARE)
        if ranks.broadcast(idle or time.monotonic() > deadline):
            return best


def _probe(ranks: Group, cluster: Cluster) -> float:
    """Return the ring's time over its closed form, the same on every rank. Collective."""
    participating = replace(cluster, rates=cluster.rates[: ranks.size])
    ranks.barrier()
    ratios = ranks.gather(ring_ratio(participating, ranks.rank))
    return float(ranks.broadcast(worst_ratio(participating, ratios) if ratios else 0.0))


def foreign_cpu_share(nodes: Sequence[Counters]) -> float:
    """Return the share of all cores that went to other processes or virtual machines than these ranks."""
    foreign_s = max(node.machine_cpu_s for node in nodes) - sum(node.cpu_s for node in nodes)
    return max(0.0, foreign_s) / max(node.wall_s for node in nodes) / (os.cpu_count() or 1)


def read_counters() -> Counters:
    """Read this node's and this process's counters."""
    sent, received = bytes_on_link() or (0, 0)
    tcp = {**_table("/proc/net/snmp", "Tcp:"), **_table("/proc/net/netstat", "TcpExt:")}
    drops, overlimits = _queue()
    user, nice, system, _, _, _, _, steal, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return Counters(
        bytes_sent=sent,
        bytes_received=received,
        segments=tcp["OutSegs"],
        retransmissions=tcp["RetransSegs"],
        timeouts=tcp["TCPTimeouts"],
        drops=drops,
        overlimits=overlimits,
        machine_cpu_s=(user + nice + system + steal) / os.sysconf("SC_CLK_TCK"),
        cpu_s=time.process_time(),
        wall_s=time.monotonic(),
    )


def run_delays() -> dict[str, float]:
    """Seconds that each thread of this process has been ready and had no core (schedstats, field 2)."""
    threads = Path("/proc/self/task").glob("*/schedstat")
    return {path.parent.name: int(path.read_text().split()[1]) / 1e9 for path in threads}


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


def to_columns(nodes: Sequence[Evidence], steps: int) -> dict[str, float | bool]:
    """Return all nodes' evidence as columns of one row: worst shares, summed counts, the busiest link's load."""
    counters = [node.counters for node in nodes]
    busiest = max(nodes, key=lambda node: node.counters.bytes_sent / node.goodput)
    return {
        "probe_ratio_before": nodes[0].probe_ratio_before,
        "probe_ratio_after": nodes[0].probe_ratio_after,
        "run_delay_share": max(node.run_delay_share for node in nodes),
        "foreign_cpu_share": foreign_cpu_share(counters),
        "packet_drops": sum(each.drops for each in counters),
        "retransmitted_share": sum(each.retransmissions for each in counters)
        / max(1, sum(each.segments for each in counters)),
        "tcp_timeouts": sum(each.timeouts for each in counters),
        "link_bursts_per_step": busiest.counters.bytes_sent / steps / BURST_BYTES,
        "link_overlimits": busiest.counters.overlimits,
        "napping": all(node.napping for node in nodes),
    }


def invalid_reason(
    columns: Mapping[str, Any],
    wire_ratios: Mapping[str, float],
    header_shares: Mapping[str, float],
    overshoot_s: float | None,
) -> str:
    """Return why a run is invalid, an empty string if it is valid.

    `columns` are those of `to_columns`; `wire_ratios` the wire's over the counted bytes by direction and role;
    `header_shares` what headers of small messages may add to these ratios; `overshoot_s` the 95th percentile of the
    seconds by which emulated compute slept too long.
    """
    enough = columns["link_bursts_per_step"] >= MIN_BURSTS
    checks = [
        (
            f"{name}: the wire carried {ratio:.3f} times the counted bytes",
            enough and not MIN_WIRE_RATIO <= ratio <= MAX_WIRE_RATIO + header_shares.get(name, 0.0),
        )
        for name, ratio in wire_ratios.items()
    ]
    for when in ("before", "after"):
        ratio = columns[f"probe_ratio_{when}"]
        checks.append(
            (f"a bare ring took {ratio:.3f} times its closed form {when} the run", abs(ratio - 1) > TOLERANCE)
        )
    overshoot_s, retransmitted = overshoot_s or 0.0, columns["retransmitted_share"]
    checks += [
        (
            f"a rank waited for a core {columns['run_delay_share']:.0%} of the time",
            columns["run_delay_share"] > MAX_RUN_DELAY_SHARE,
        ),
        (
            f"other processes used {columns['foreign_cpu_share']:.0%} of the cores",
            columns["foreign_cpu_share"] > MAX_FOREIGN_CPU_SHARE,
        ),
        (f"packets dropped: {columns['packet_drops']}", columns["packet_drops"] > 0),
        (f"{retransmitted:.1%} of all segments were retransmitted", retransmitted > MAX_RETRANSMITTED_SHARE),
        (f"TCP timeouts: {columns['tcp_timeouts']}", columns["tcp_timeouts"] > 0),
        ("the busiest link was never full", enough and columns["link_overlimits"] == 0),
        (f"emulated compute slept {overshoot_s * 1e3:.2f} ms too long (p95)", overshoot_s > MAX_SLEEP_OVERSHOOT_S),
    ]
    return "; ".join(text for text, applies in checks if applies)
