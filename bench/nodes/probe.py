"""A ring over bare TCP sockets: whether the emulated links reach their rate, independent of any library.

It has the traffic of a ring-allreduce without its arithmetic: every node sends blocks to the next node, and may be
one block ahead of what it has received.
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
SEND_BYTES = 1 << 18  # at most, per system call
PIECE_BYTES = 1 << 14
TIMEOUT_S = 30.0
MIN_DURATION_S = 0.2
BLOCKS_AHEAD = (
    1  # with 0 every wait for a core at the end of a block stops the whole ring: 3 to 10 % on an idle machine
)
# Bytes through each link in units of its token bucket: with fewer the initially full bucket would distort the time.
MIN_BURSTS = 24
# Accepted distance of time / closed form from 1, and how often the probe is repeated: a pause of 10 ms is 5 % of one.
# The probe tests the links only; disturbances during a run are the guard's to detect.
TOLERANCE = 0.05
ATTEMPTS = 8


def ring_ratio(cluster: Cluster, rank: int) -> float:
    """Run one ring over all nodes as node `rank`; return its time over the closed form.

    The closed form is bytes / (the slowest link's goodput). Collective: a process on every node calls it.
    """
    size = len(cluster.nodes)
    if size == 1:
        return 1.0
    goodput = min(map(cluster.goodput, cluster.nodes))
    # Nodes do not begin at the same moment, and a delay goes round the ring: over as many rounds as there are nodes,
    # all of them take equally long.
    warmup_rounds = max(1, size // 2)
    block = int(max(MIN_DURATION_S * goodput, MIN_BURSTS * BURST_BYTES) / size)
    own, successor = (cluster.address(cluster.nodes[index % size]) for index in (rank, rank + 1))
    with contextlib.closing(socket.create_server((own, PORT))) as server:
        server.settimeout(TIMEOUT_S)
        with contextlib.closing(_connect(successor)) as outgoing:
            incoming, _ = server.accept()
            with contextlib.closing(incoming):
                seconds, nbytes = _exchange(outgoing, incoming, block, warmup_rounds, size)
    return seconds / (nbytes / goodput)


def _connect(address: str) -> socket.socket:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return socket.create_connection((address, PORT), timeout=TIMEOUT_S)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _exchange(
    outgoing: socket.socket, incoming: socket.socket, block: int, warmup_rounds: int, rounds: int
) -> tuple[float, int]:
    """Send and receive blocks; return the seconds and the bytes received in the rounds after the warm-up."""
    outgoing.setblocking(False)
    incoming.setblocking(False)
    data = memoryview(bytearray(SEND_BYTES))
    # The warm-up ends with a whole block: on uneven links each block arrives at once, then nothing until the next.
    warm = block * warmup_rounds
    total = warm + block * rounds
    sent = received = 0
    began = ended = time.perf_counter()
    while sent < total or received < total:
        may_send = min(total, block * (1 + BLOCKS_AHEAD + received // block)) - sent
        expecting, sending = [incoming] * (received < total), [outgoing] * (may_send > 0)
        readable, writable, _ = select.select(expecting, sending, [], TIMEOUT_S)
        if not readable and not writable:
            raise TimeoutError(f"ring probe: no data for {TIMEOUT_S:g} s")
        if writable:
            sent += outgoing.send(data[: min(may_send, SEND_BYTES)])
        if readable:
            warming_up = received < warm
            received += incoming.recv_into(data[: min(warm - received, SEND_BYTES)] if warming_up else data)
            ended = time.perf_counter()
            began = ended if warming_up else began
    return ended - began, total - warm


def worst_ratio(cluster: Cluster, ratios: Sequence[float]) -> float:
    """Return the worst ratio of the nodes that receive from a slowest link; the others' include waiting."""
    slowest = min(cluster.rates)
    return max(ratio for rate, ratio in zip(cluster.rates, [*ratios[1:], ratios[0]], strict=True) if rate == slowest)


def best_ratio(once: Callable[[], float]) -> float:
    """Repeat the probe until its ratio is within tolerance, at most ATTEMPTS times; return the best."""
    best = once()
    for _ in range(ATTEMPTS - 1):
        if abs(best - 1) <= TOLERANCE:
            break
        best = min(best, once(), key=lambda ratio: abs(ratio - 1))
    return best


def socket_cpu_s_per_byte(seconds: float = 0.02, attempts: int = 5) -> float:
    """Return the CPU seconds that this machine takes to send and receive a byte over TCP, in pieces of PIECE_BYTES.

    The least of some attempts of `seconds` CPU seconds each: other processes can only make it slower.
    """
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as outgoing:
        incoming, _ = server.accept()
        with incoming:
            return min(_socket_cpu_s(outgoing, incoming, seconds) for _ in range(attempts))


def _socket_cpu_s(outgoing: socket.socket, incoming: socket.socket, seconds: float) -> float:
    data, nbytes, began = memoryview(bytearray(PIECE_BYTES)), 0, time.process_time()
    while time.process_time() - began < seconds:
        outgoing.sendall(data)
        left = PIECE_BYTES
        while left:
            left -= incoming.recv_into(data[:left])
        nbytes += PIECE_BYTES
    return (time.process_time() - began) / nbytes


def fork_ring(cluster: Cluster) -> float:
    """Run a ring on a cluster that is up, with a forked child on each node; return the worst ratio.

    Only for a process with one thread. OSError if a child failed.
    """
    children = [_fork(cluster, rank) for rank in range(len(cluster.nodes))]
    ratios = []
    for pid, pipe in children:
        with os.fdopen(pipe) as result:
            ratios.append(result.read())
        os.waitpid(pid, 0)
    if not all(ratios):
        raise OSError("a node's process failed")
    return worst_ratio(cluster, [float(ratio) for ratio in ratios])


def _fork(cluster: Cluster, rank: int) -> tuple[int, int]:
    """Fork a child that runs the ring on a node; return its process id and the pipe with its ratio."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    try:
        node.enter(cluster, cluster.nodes[rank])
        os.write(write, str(ring_ratio(cluster, rank)).encode())
    finally:
        os._exit(0)
