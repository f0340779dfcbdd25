"""Steps that end with an allreduce: buckets of gradients on one network, overlapping backward.

Bucket i is ready at g_i, begins at s_i = max(g_i + tau, e_{i-1}) and ends at e_i = s_i + T_c(m_i); the step ends with
the last bucket and the update. T_c of a ring: 2(N-1)(alpha + 2o) + 2(N-1)/N·m/B + (N-1)/N·m·gamma (Patarasuk and Yuan,
2009); of Rabenseifner 2·log2(N) messages and the same bytes where N is a power of two; of recursive doubling log2(N)
messages of m. Two levels add 2(G-1)/G·m/B_local for the G ranks of a node. Where several buckets are in flight
(mpi_ring), a bucket occupies the link for its bytes only, and its latency passes beside others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.links import parse_links
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.compute import Compute

MAX_PIECES = 512  # more hardly change the result
Bucket = tuple[float, float]  # when its last gradient is ready after backward began, and its bytes


@dataclass(frozen=True)
class Cost:
    """Seconds of one allreduce of m bytes: per byte and per allreduce."""

    link_s_per_byte: float  # on the busiest link between nodes
    local_s_per_byte: float  # between the ranks of a node
    cpu_s_per_byte: float  # adding and copying
    latency_s: float
    message_cpu_s: float

    def besides_s(self, nbytes: float) -> float:
        """Return what an allreduce takes beside its bytes on the link."""
        return self.latency_s + self.message_cpu_s + (self.local_s_per_byte + self.cpu_s_per_byte) * nbytes

    def occupied_s(self, nbytes: float, number: float) -> float:
        """Return what the busiest resource spends on `number` allreduces whose latencies pass beside each other."""
        on_processor = number * self.message_cpu_s + self.cpu_s_per_byte * nbytes
        return max(self.link_s_per_byte * nbytes, self.local_s_per_byte * nbytes, on_processor)


class Link:
    """A link that carries transfers one after another; after a pause it passes `burst_s` worth of bytes at once."""

    def __init__(self, burst_s: float) -> None:
        self._burst_s = burst_s
        self._free = 0.0

    def send(self, at: float, seconds: float) -> float:
        """Return when a transfer ends that takes `seconds` of the link's rate."""
        self._free = max(at - self._burst_s, self._free) + seconds
        return max(at, self._free)


def cost(cell: Cell, calibration: ClusterCalibration) -> Cost:
    """Return the cost of an allreduce among the cell's ranks."""
    n, config = cell.senders, cell.config
    copies, hops, adds = _volume(cell)
    crowd = calibration.crowding(config.num_workers)
    flat_on_node = 1 if cell.two_level else cell.ranks_per_node
    crossing = 1.0 if n > 1 and cell.num_worker_nodes > 1 else 0.0
    shared = flat_on_node if cell.algorithm != "ring" else 1  # a ring enters and leaves each node once
    bandwidth = slowest_link(cell, calibration) if crossing and copies else math.inf
    g = cell.ranks_per_node if cell.two_level else 1
    local = 2 * (g - 1) / g / calibration.node_bytes_per_s
    if not crossing:
        local += copies / calibration.node_bytes_per_s
    return Cost(
        link_s_per_byte=crossing * shared * copies * calibration.duplex_factor / bandwidth,
        local_s_per_byte=local,
        cpu_s_per_byte=crowd * (adds * calibration.add_s_per_byte + copies * calibration.copy_s_per_byte),
        latency_s=hops * calibration.latency_s,
        message_cpu_s=2 * hops * calibration.message_cpu_s * crowd,
    )


def _volume(cell: Cell) -> tuple[float, float, float]:
    """Return, per payload, the copies that the busiest rank sends, its messages, and the copies that it adds."""
    n, config = cell.senders, cell.config
    if n == 1:
        return 0.0, 0, 0.0
    levels = n.bit_length() - 1
    power_of_two = 2**levels == n
    if cell.algorithm == "recursive_doubling":
        more = not power_of_two  # ranks beyond the power of two send theirs to a partner first, and get the sum last
        return levels + more, levels + 2 * more, levels + more
    assert config.kind.closed_form is not None  # step_time refuses strategies without one
    payload = cell.payload
    copies = (config.kind.closed_form(config, cell.job).worker.bytes_sent or 0) / payload
    if cell.algorithm == "rabenseifner":
        p, more = 2**levels, not power_of_two  # else half a copy is exchanged before, and a whole one sent on after
        return 2 * (p - 1) / p + more * 1.5, 2 * levels + 2 * more, (p - 1) / p + more * 0.5
    return copies, round(copies * n), (n - 1) / n


def slowest_link(cell: Cell, calibration: ClusterCalibration) -> float:
    """Return bytes per second of the slowest worker's link."""
    link = cell.config.link
    if link is None or "=" not in link:
        return calibration.goodput(link)
    rates = parse_links(link, cell.num_nodes, cell.config.num_servers)[: cell.num_worker_nodes]
    return min(rates) / 8 * calibration.payload_share


def last_end(cell: Cell, calibration: ClusterCalibration, compute: Compute) -> float:
    """Return when the last bucket ends after the last backward began; 0 if nothing is exchanged."""
    of_one = cost(cell, calibration)
    kind = cell.config.kind.exchange
    if cell.config.num_workers == 1:
        return 0.0
    gradients = _gradients(cell, compute)
    if kind == "fusion":
        tau = cell.config.cycle_time_s + calibration.cycle_s
        link = Link(calibration.burst_bytes * of_one.link_s_per_byte)
        return _fused(gradients, of_one, link, cell.config.fusion_threshold_bytes, tau)
    link = Link(calibration.burst_bytes * of_one.link_s_per_byte)
    if kind == "segments":
        return _segmented(cell, compute, of_one, link)
    end = 0.0
    for ready, nbytes in _buckets(gradients, cell.config.bucket_bytes):
        start = max(ready, end)
        end = link.send(start, of_one.link_s_per_byte * nbytes) + of_one.besides_s(nbytes)
    return end


def _gradients(cell: Cell, compute: Compute) -> list[Bucket]:
    """Return every tensor in the order of backward."""
    names = list(reversed(_layer_names(cell)))
    ready = dict(zip(names, compute.ready[::-1].tolist(), strict=True))
    return [(ready[tensor.layer], tensor.size * cell.bytes_per_number) for tensor in cell.tensors]


def _layer_names(cell: Cell) -> list[str]:
    return list(dict.fromkeys(tensor.layer for tensor in reversed(cell.tensors)))


def _fused(gradients: list[Bucket], of_one: Cost, link: Link, threshold: float, tau: float) -> float:
    """Form the buckets inside the recursion: each takes every gradient that is ready, up to the fusion threshold."""
    end, i = 0.0, 0
    while i < len(gradients):
        start = max(gradients[i][0] + tau, end)
        nbytes = gradients[i][1]
        i += 1
        while i < len(gradients) and gradients[i][0] <= start and nbytes + gradients[i][1] <= threshold:
            nbytes += gradients[i][1]
            i += 1
        end = link.send(start, of_one.link_s_per_byte * nbytes) + of_one.besides_s(nbytes)
    return end


def _buckets(gradients: list[Bucket], limit: float) -> Iterator[Bucket]:
    """Yield DDP's buckets: whole tensors until one reaches the limit."""
    total = 0.0
    for number, (ready, nbytes) in enumerate(gradients):
        total += nbytes
        if total >= limit or number == len(gradients) - 1:
            yield ready, total
            total = 0.0


def _segmented(cell: Cell, compute: Compute, of_one: Cost, link: Link) -> float:
    """Return the end of mpi_ring's buckets: equal ranges of the flat gradient, one message of segment_bytes per rank.

    Many buckets are taken together, so that at most MAX_PIECES are followed.
    """
    buckets = max(1, math.ceil(cell.payload / (cell.config.segment_bytes * cell.senders)))
    number = min(buckets, MAX_PIECES)
    together, free, end = buckets / number, 0.0, 0.0
    for ready, nbytes in zip(*pieces(cell, compute, number), strict=True):
        start = max(ready, free)
        last = of_one.besides_s(nbytes / together)  # of the last bucket; the others' pass beside it
        end = max(end, link.send(start, of_one.link_s_per_byte * nbytes) + last)
        free = start + of_one.occupied_s(nbytes, together)
    return end


def pieces(cell: Cell, compute: Compute, number: int) -> tuple[list[float], list[float]]:
    """Cut the flat gradient, in the order of backward, into equal pieces; return when each is ready, and its bytes."""
    gradients = _gradients(cell, compute)
    ready, sizes = (np.array(values) for values in zip(*gradients, strict=True))
    ends = np.cumsum(sizes)
    cuts = np.linspace(0, ends[-1], number + 1)[1:]
    last = np.minimum(np.searchsorted(ends, cuts * (1 - 1e-12)), len(ends) - 1)
    return ready[last].tolist(), [float(ends[-1]) / number] * number
