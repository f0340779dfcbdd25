"""Measure what the links and the hosts of a launch cost, for a prediction: half a minute on links of 200 Mbit/s.

Waiting ranks sleep between looks (no busy polling), so that CPU time is the cost of messages and not of waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from bench.intervals import Estimate, median_interval
from strategies import catalogue
from strategies.group import Group
from strategies.options import Options

POLL_S = 1e-3
SMALL_BYTES = (1, 1 << 8, 1 << 10)
SIZES = tuple(1 << power for power in range(0, 24, 3))  # of the ping-pong, up to 2 MB
ROUNDS = 9
STREAM_S = 0.3  # a stream of n bytes takes at least this long, one of 2n twice as long
MAX_STREAM_BYTES = 1 << 28
FLOOD_MESSAGES = 1000
FUSED = 50  # allreduces of Horovod
SERVED_BYTES = 1 << 22
STREAM_CHUNK = 60_000  # bytes of a message of a stream: the default of the parameter server
CHUNKS = (1 << 12, 60_000)  # bytes of a server's messages, to tell the cost of a message from that of its bytes
MAX_WORKERS = 3
ARRAY_BYTES = 1 << 25  # beyond the caches of one core


def wait_quietly(comm: Any) -> None:
    """Return once every rank is here; sleep in between. Collective."""
    wait_for([comm.Ibarrier()])


def wait_for(requests: list[Any]) -> None:
    """Return once all requests are complete; sleep in between."""
    from mpi4py import MPI

    while not MPI.Request.Testall(requests):
        time.sleep(POLL_S)


def measure_host() -> dict[str, Estimate]:
    """Return the seconds in which this rank adds and copies a byte of fp32 numbers in memory, with intervals."""
    one, other = (np.ones(ARRAY_BYTES // 4, np.float32) for _ in range(2))
    return {
        "add_s_per_byte": median_interval(
            [seconds / one.nbytes for seconds in _times(lambda: np.add(one, other, out=one))]
        ),
        "copy_s_per_byte": median_interval([seconds / one.nbytes for seconds in _times(lambda: np.copyto(one, other))]),
    }


def measure_links(ranks: Group) -> dict[str, Estimate]:
    """Return latency, goodput, duplex factor and CPU per message and byte, on every rank. Collective; 2 ranks at least.

    The link is that between the first and the last rank; the server is the last rank, workers are the others.
    """
    comm = ranks.comm
    pings = [_ping_pong(comm, nbytes) for nbytes in SMALL_BYTES]
    found = {
        "latency_s": median_interval(pings[0]),
        **_stream(comm),
        "flood_s_per_message": median_interval([_flood(comm) for _ in range(ROUNDS)]),
        **_served(comm),
    }
    return dict(comm.bcast(found))


def measure_fusion(ranks: Group, options: Options) -> dict[str, Estimate]:
    """Return what Horovod waits before it sums a gradient, beyond its cycle; nothing where it is not installed.

    Collective. Horovod then stays initialised.
    """
    try:
        small_times = catalogue.load("strategies.ring_allreduce:small_allreduce_times")
    except ImportError:
        return {}
    one = np.zeros(1, np.float32)
    bare_s = median(_times(lambda: ranks.comm.Allreduce(one.copy(), one)))
    waited = [max(0.0, seconds - options.cycle_time_s - bare_s) for seconds in small_times(options, FUSED)]
    return {"cycle_s": median_interval(waited)}


def ping_pong_table(ranks: Group) -> dict[int, float]:
    """Return the median seconds one way between first and last rank by bytes of a message. Collective."""
    found = {nbytes: median(_ping_pong(ranks.comm, nbytes)) for nbytes in SIZES}
    return dict(ranks.comm.bcast(found))


def _times(act: Callable[[], object]) -> list[float]:
    act()
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return found


def _peer(comm: Any) -> int | None:
    """Return the other end of the measured link; None on ranks that are at neither end."""
    last: int = comm.size - 1
    return {0: last, last: 0}.get(comm.rank)


def _ping_pong(comm: Any, nbytes: int) -> list[float]:
    """Return seconds one way of a message, of several rounds; meaningful on rank 0. Collective."""
    peer, buffer = _peer(comm), np.zeros(nbytes, np.uint8)
    found = [0.0]
    wait_quietly(comm)
    for round_ in range(ROUNDS + 1 if peer is not None else 0):
        began = time.perf_counter()
        if comm.rank == 0:
            comm.Send(buffer, peer)
            comm.Recv(buffer, peer)
        else:
            comm.Recv(buffer, peer)
            comm.Send(buffer, peer)
        if round_:  # the first opens the connection
            found.append((time.perf_counter() - began) / 2)
    wait_quietly(comm)
    return found[1:] or found


def _stream(comm: Any) -> dict[str, Estimate]:
    """Return goodput and duplex factor from the time that the second half of a stream takes. Collective.

    The first half pays for the latency and uses up the token bucket of an emulated link.
    """
    nbytes = 1 << 20
    while _send(comm, nbytes, both=False) < STREAM_S and nbytes < MAX_STREAM_BYTES:
        nbytes *= 2
    rates, factors = [], []
    for _ in range(5):
        one = _send(comm, 2 * nbytes, both=False) - _send(comm, nbytes, both=False)
        two = _send(comm, 2 * nbytes, both=True) - _send(comm, nbytes, both=True)
        if one > 0 and two > 0:
            rates.append(nbytes / one)
            factors.append(min(2.0, max(1.0, two / one)))
    if not rates:
        return {}
    return {"bytes_per_s": median_interval(rates), "duplex_factor": median_interval(factors)}


def _send(comm: Any, nbytes: int, both: bool) -> float:
    """Send bytes from the first rank to the last, in chunks, at the same time as many back if `both`. Collective.

    Returns the seconds until all had arrived, the same on every rank.
    """
    from mpi4py import MPI

    peer, chunk = _peer(comm), np.zeros(STREAM_CHUNK, np.uint8)
    count = max(1, nbytes // chunk.size)
    wait_quietly(comm)
    began = time.perf_counter()
    if peer is not None:
        receives, sends = comm.rank != 0 or both, comm.rank == 0 or both
        arriving = np.empty(chunk.size, np.uint8)  # every message into the same bytes, which nobody reads
        requests = [comm.Irecv(arriving, peer) for _ in range(count if receives else 0)]
        requests += [comm.Isend(chunk, peer) for _ in range(count if sends else 0)]
        MPI.Request.Waitall(requests)
        if comm.rank == 0 and not both:
            comm.Recv(np.empty(1, np.uint8), peer)
        elif not both:
            comm.Send(np.empty(1, np.uint8), peer)
    seconds = time.perf_counter() - began
    wait_quietly(comm)
    return float(comm.bcast(seconds))


def _flood(comm: Any) -> float:
    """Return seconds per message of one byte, sent as fast as possible; the same on every rank. Collective."""
    from mpi4py import MPI

    peer, byte = _peer(comm), np.zeros(1, np.uint8)
    wait_quietly(comm)
    began = time.perf_counter()
    if peer is not None and comm.rank == 0:
        MPI.Request.Waitall([comm.Isend(byte, peer) for _ in range(FLOOD_MESSAGES)])
        comm.Recv(byte, peer)
    elif peer is not None:
        MPI.Request.Waitall([comm.Irecv(byte, peer) for _ in range(FLOOD_MESSAGES)])
        comm.Send(byte, peer)
    seconds = time.perf_counter() - began
    wait_quietly(comm)
    return float(comm.bcast(seconds)) / FLOOD_MESSAGES


def _served(comm: Any) -> dict[str, Estimate]:
    """Return the CPU seconds of a worker and of a server per message and per byte sent or received. Collective."""
    samples: dict[str, list[float]] = {}
    for _ in range(3):
        by_chunk = [_serve(comm, chunk) for chunk in CHUNKS]
        for index, role in enumerate(("worker", "server")):
            found = _split([(cpu[index], *traffic[index]) for cpu, traffic in by_chunk])
            for name, value in zip(("message_cpu_s", "cpu_s_per_byte"), found, strict=True):
                samples.setdefault(f"{role}_{name}", []).append(value)
    return {name: median_interval(values) for name, values in samples.items()}


def _split(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Return (per message, per byte), at least 0, from rows of CPU seconds, messages and bytes."""
    from scipy.optimize import nnls

    scale = np.array([[1e-5, 1e-9]])  # of one message and of one byte, so that neither vanishes beside the other
    costs, _ = nnls(np.array([row[1:] for row in rows]) * scale, np.array([row[0] for row in rows]))
    return float(costs[0] * scale[0, 0]), float(costs[1] * scale[0, 1])


def _serve(comm: Any, chunk_bytes: int) -> tuple[list[float], list[tuple[float, float]]]:
    """Push and pull once through a small server; return CPU seconds, and (messages, bytes), of a worker and the server.

    Collective; the same on every rank.
    """
    workers, server = range(min(comm.size - 1, MAX_WORKERS)), comm.size - 1
    chunks = SERVED_BYTES // chunk_bytes
    wait_quietly(comm)
    began = time.process_time()
    if comm.rank == server:
        _be_server(comm, workers, chunks, chunk_bytes)
    elif comm.rank in workers:
        _be_worker(comm, server, chunks, chunk_bytes)
    cpu_s = time.process_time() - began
    every = comm.allgather(cpu_s)
    traffic = [(2.0 * chunks * count, 2.0 * chunks * chunk_bytes * count) for count in (1, len(workers))]
    return [median(every[rank] for rank in workers), every[server]], traffic


def _be_server(comm: Any, workers: range, chunks: int, chunk_bytes: int) -> None:
    slots = np.empty((len(workers), chunks, chunk_bytes // 4), np.float32)
    sums = np.empty((chunks, chunk_bytes // 4), np.float32)
    arriving = [[comm.Irecv(slots[worker, chunk], worker, chunk) for worker in workers] for chunk in range(chunks)]
    replies = []
    for chunk in range(chunks):
        wait_for(arriving[chunk])
        np.copyto(sums[chunk], slots[0, chunk])
        for worker in workers[1:]:
            np.add(sums[chunk], slots[worker, chunk], out=sums[chunk])
        replies += [comm.Isend(sums[chunk], worker, chunk) for worker in workers]
    wait_for(replies)


def _be_worker(comm: Any, server: int, chunks: int, chunk_bytes: int) -> None:
    gradient = np.zeros((chunks, chunk_bytes // 4), np.float32)
    weights = np.empty_like(gradient)
    requests = [comm.Irecv(weights[chunk], server, chunk) for chunk in range(chunks)]
    wait_for(requests + [comm.Isend(gradient[chunk], server, chunk) for chunk in range(chunks)])
