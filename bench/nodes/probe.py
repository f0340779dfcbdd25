"""A bare ring over TCP sockets: does the emulated network carry what it promises, whatever MPI makes of it?

The traffic of a ring-allreduce without its arithmetic: 2(N−1) rounds, in each of which every node sends a
block to the next and may send the next block only when one has come. Plain sockets, no library in between.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Sequence

from bench.nodes import node
from bench.nodes.layout import BURST_BYTES, Cluster

PORT = 5077
PIECE = 1 << 18
CONNECT_S = 30.0
LEAST_S = 0.15
# Bytes through each link, in bursts: fewer, and the full buckets at the start would decide.
LEAST_BURSTS = 24
WARMUP_SHARE = 1 / 3
# How far from the closed form a probe may be, and how often a hiccup of the machine is forgiven: one of 10 ms is 5 %
# of a probe. It asks whether the links are what they should be; what disturbs a run, the guard sees in the run.
TOLERANCE = 0.05
ATTEMPTS = 8


def ring_ratio(cluster: Cluster, rank: int) -> float:
    """Run a ring over the first to the last node as one of them; return its time over the closed form.

    The closed form is bytes / (the slowest link's goodput). Collective: every node's process calls it.
    """
    size = len(cluster.nodes)
    if size == 1:
        return 1.0
    goodput = min(map(cluster.goodput, cluster.nodes))
    rounds = 2 * (size - 1)
    block = int(max(LEAST_S * goodput, LEAST_BURSTS * BURST_BYTES) / rounds / (1 - WARMUP_SHARE))
    here, there = (cluster.address(cluster.nodes[index % size]) for index in (rank, rank + 1))
    with contextlib.closing(socket.create_server((here, PORT))) as server:
        server.settimeout(CONNECT_S)
        with contextlib.closing(_connect(there)) as outgoing:
            incoming, _ = server.accept()
            with contextlib.closing(incoming):
                seconds, nbytes = _exchange(outgoing, incoming, block, rounds)
    return seconds / (nbytes / goodput)


def _connect(address: str) -> socket.socket:
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            return socket.create_connection((address, PORT), timeout=CONNECT_S)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _exchange(outgoing: socket.socket, incoming: socket.socket, block: int, rounds: int) -> tuple[float, int]:
    """Send and receive `rounds` blocks; return the seconds and the bytes received after the warm-up.

    That ends with a block: on uneven links blocks come fast, one at a time, in the rhythm of the slowest link.
    """
    outgoing.setblocking(False)
    incoming.setblocking(False)
    data = memoryview(bytearray(PIECE))
    total, warm = block * rounds, block * round(rounds * WARMUP_SHARE)
    sent = received = 0
    began = ended = time.perf_counter()
    while sent < total or received < total:
        may_send = min(total, block * (1 + received // block)) - sent
        expecting, sending = [incoming] * (received < total), [outgoing] * (may_send > 0)
        readable, writable, _ = select.select(expecting, sending, [], CONNECT_S)
        if not readable and not writable:
            raise TimeoutError(f"the ring stood still for {CONNECT_S:g} s")
        if writable:
            sent += outgoing.send(data[: min(may_send, PIECE)])
        if readable:
            warming_up = received < warm
            received += incoming.recv_into(data[: min(warm - received, PIECE)] if warming_up else data)
            ended = time.perf_counter()
            began = ended if warming_up else began
    return ended - began, total - warm


def worst_ratio(cluster: Cluster, ratios: Sequence[float]) -> float:
    """The worst of all nodes' ratios; on uneven links of those behind a slowest one, for only they never wait."""
    slowest = min(cluster.rates)
    return max(ratio for rate, ratio in zip(cluster.rates, [*ratios[1:], ratios[0]], strict=True) if rate == slowest)


def steady_ratio(once: Callable[[], float]) -> float:
    """Probe until one is within tolerance, at most ATTEMPTS times; return the best."""
    best = once()
    for _ in range(ATTEMPTS - 1):
        if abs(best - 1) <= TOLERANCE:
            break
        best = min(best, once(), key=lambda ratio: abs(ratio - 1))
    return best


def ring_from_outside(cluster: Cluster) -> float:
    """Run a ring on a cluster that is up, a child process on each node; return the worst ratio.

    For a process with one thread only: it forks. OSError if a node's process failed.
    """
    children = [_start(cluster, rank) for rank in range(len(cluster.nodes))]
    ratios = []
    for pid, pipe in children:
        with os.fdopen(pipe) as answer:
            ratios.append(answer.read())
        os.waitpid(pid, 0)
    if not all(ratios):
        raise OSError("a node's process failed")
    return worst_ratio(cluster, [float(ratio) for ratio in ratios])


def _start(cluster: Cluster, rank: int) -> tuple[int, int]:
    answer, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, answer
    try:
        node.enter(cluster, cluster.nodes[rank])
        os.write(write, str(ring_ratio(cluster, rank)).encode())
    finally:
        os._exit(0)
