"""Is a row measured on emulated nodes valid, or was the emulator itself the bottleneck?

Every rank watches its own node during a run; afterwards the evidence of all decides. An invalid row stays in
the tables with its reason, out of figures and fits.
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
from bench.nodes.probe import TOLERANCE, ring_ratio, steady_ratio, worst_ratio
from strategies.base import Group

# What the kernel counts over what was counted in the run: frames have headers, a segment may be sent as two.
LEAST_WIRE_RATIO, MOST_WIRE_RATIO = 0.99, 1.06
# With fewer bursts of bytes per step and link, headers and barriers outweigh the payload.
LEAST_BURSTS = 10
MOST_RUN_DELAY_SHARE = 0.35
MOST_FOREIGN_CPU_SHARE = 0.15
MOST_SLEEP_OVERSHOOT_S = 1e-3
PAUSE_S = 0.3  # between two looks at whether the machine is ours
# TCP probes the end of a burst by sending its last segment again: a few are no loss. A timeout always is.
MOST_RETRANSMITTED_SHARE = 1e-3


@dataclass(frozen=True)
class Reading:
    """The kernel's counters of one node and one process, at one moment."""

    bytes_sent: int
    bytes_received: int
    segments: int
    retransmissions: int
    timeouts: int
    drops: int
    overlimits: int  # how often the shaped link made a packet wait
    machine_cpu_s: float  # used by all processes, and stolen by other machines
    cpu_s: float  # used by this rank
    wall_s: float

    def until(self, later: Reading) -> Reading:
        """What has been added since."""
        return Reading(**{name: value - getattr(self, name) for name, value in asdict(later).items()})


@dataclass(frozen=True)
class Evidence:
    """What one node's watch saw in one run: differences of readings, and the probes before and after."""

    seen: Reading
    goodput: float
    run_delay_share: float  # of the time in which the worst thread of this rank was ready and had no core
    probe_ratio_before: float
    probe_ratio_after: float
    napping: bool


class Watch:
    """Watches one node through one run. Collective: every rank begins and ends it.

    It begins when the links carry what they should and nobody else uses the machine, or after `patience_s` of waiting.
    """

    def __init__(self, ranks: Group, patience_s: float) -> None:
        self._ranks = ranks
        self._cluster = find(os.environ[CLUSTER_VARIABLE])
        self._before = _wait_until_quiet(ranks, self._cluster, patience_s)
        self._begun, self._delays = read(), run_delays()

    def end(self) -> Evidence:
        """Return what was seen since the beginning."""
        seen, delays = self._begun.until(read()), run_delays()
        longest_s = max(seconds - self._delays.get(thread, 0.0) for thread, seconds in delays.items())
        return Evidence(
            seen=seen,
            goodput=self._cluster.goodput(self._cluster.nodes[self._ranks.rank]),
            run_delay_share=longest_s / seen.wall_s,
            probe_ratio_before=self._before,
            probe_ratio_after=steady_ratio(lambda: _probe(self._ranks, self._cluster)),
            napping=nap.is_loaded(os.environ),
        )


def _wait_until_quiet(ranks: Group, cluster: Cluster, patience_s: float) -> float:
    """Probe until the links are what they should be and the machine is ours; return the best ratio. Collective."""
    deadline, best = time.monotonic() + patience_s, float("inf")
    while True:
        begun = read()
        time.sleep(PAUSE_S)
        ratio = _probe(ranks, cluster)
        seen = ranks.gather(begun.until(read()))
        best = min(best, ratio, key=lambda ratio: abs(ratio - 1))
        quiet = abs(ratio - 1) <= TOLERANCE and (not seen or foreign_cpu_share(seen) <= MOST_FOREIGN_CPU_SHARE)
        if ranks.broadcast(quiet or time.monotonic() > deadline):
            return best


def _probe(ranks: Group, cluster: Cluster) -> float:
    """The ring's time over its closed form, the same on every rank. Collective."""
    taking_part = replace(cluster, rates=cluster.rates[: ranks.size])
    ranks.barrier()
    ratios = ranks.gather(ring_ratio(taking_part, ranks.rank))
    return float(ranks.broadcast(worst_ratio(taking_part, ratios) if ratios else 0.0))


def foreign_cpu_share(seen: Sequence[Reading]) -> float:
    """The share of all cores that others than these ranks used, or other machines took."""
    foreign_s = max(reading.machine_cpu_s for reading in seen) - sum(reading.cpu_s for reading in seen)
    return max(0.0, foreign_s) / max(reading.wall_s for reading in seen) / (os.cpu_count() or 1)


def read() -> Reading:
    """Read this node's and this process's counters."""
    sent, received = bytes_on_link() or (0, 0)
    tcp = {**_table("/proc/net/snmp", "Tcp:"), **_table("/proc/net/netstat", "TcpExt:")}
    drops, overlimits = _queue()
    user, nice, system, _, _, _, _, steal, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return Reading(
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
    """Packets that this node's shaped link has dropped, and how often it made one wait."""
    from pyroute2 import IPRoute  # slow to import, and needed on emulated nodes only

    with IPRoute() as here:
        (index,) = here.link_lookup(ifname=INTERFACE)
        queues = [queue.get_attr("TCA_STATS2") for queue in here.get_qdiscs(index)]
    counts = [queue.get_attr("TCA_STATS_QUEUE") for queue in queues]
    return sum(count["drops"] for count in counts), sum(count["overlimits"] for count in counts)


def weigh(nodes: Sequence[Evidence], steps: int) -> dict[str, float | bool]:
    """Return what all nodes saw as columns of one row: the worst of each."""
    seen = [node.seen for node in nodes]
    busiest = max(nodes, key=lambda node: node.seen.bytes_sent / node.goodput)
    return {
        "probe_ratio_before": nodes[0].probe_ratio_before,
        "probe_ratio_after": nodes[0].probe_ratio_after,
        "run_delay_share": max(node.run_delay_share for node in nodes),
        "foreign_cpu_share": foreign_cpu_share(seen),
        "packet_drops": sum(reading.drops for reading in seen),
        "retransmitted_share": sum(r.retransmissions for r in seen) / max(1, sum(r.segments for r in seen)),
        "tcp_timeouts": sum(reading.timeouts for reading in seen),
        "link_bursts_per_step": busiest.seen.bytes_sent / steps / BURST_BYTES,
        "link_overlimits": busiest.seen.overlimits,
        "napping": all(node.napping for node in nodes),
    }


def judge(
    found: Mapping[str, Any],
    wire_ratios: Mapping[str, float],
    header_shares: Mapping[str, float],
    overshoot_s: float | None,
) -> str:
    """Return why a run is invalid, or nothing.

    `found` is what `weigh` returned; `wire_ratios` are wire over counted bytes by direction and role, and
    `header_shares` what small messages' headers may add to them;
    `overshoot_s` is the 95th percentile of how much longer than asked the emulated compute slept.
    """
    enough = found["link_bursts_per_step"] >= LEAST_BURSTS
    complaints = [
        (
            f"{name}: the wire carried {ratio:.3f} times what was counted",
            enough and not LEAST_WIRE_RATIO <= ratio <= MOST_WIRE_RATIO + header_shares.get(name, 0.0),
        )
        for name, ratio in wire_ratios.items()
    ]
    for when in ("before", "after"):
        ratio = found[f"probe_ratio_{when}"]
        complaints.append((f"a bare ring took {ratio:.3f} times its closed form {when}", abs(ratio - 1) > TOLERANCE))
    late_s, again = overshoot_s or 0.0, found["retransmitted_share"]
    complaints += [
        (
            f"a rank waited for a core {found['run_delay_share']:.0%} of the time",
            found["run_delay_share"] > MOST_RUN_DELAY_SHARE,
        ),
        (
            f"others used {found['foreign_cpu_share']:.0%} of the cores",
            found["foreign_cpu_share"] > MOST_FOREIGN_CPU_SHARE,
        ),
        (f"packets dropped: {found['packet_drops']}", found["packet_drops"] > 0),
        (f"{again:.1%} of all segments were sent again", again > MOST_RETRANSMITTED_SHARE),
        (f"TCP timeouts: {found['tcp_timeouts']}", found["tcp_timeouts"] > 0),
        ("the busiest link was never full", enough and found["link_overlimits"] == 0),
        (f"emulated compute slept {late_s * 1e3:.2f} ms too long (p95)", late_s > MOST_SLEEP_OVERSHOOT_S),
    ]
    return "; ".join(text for text, applies in complaints if applies)
