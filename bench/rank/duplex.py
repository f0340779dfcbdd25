"""Measure the duplex factor of a run's transport: the cost of sending in both directions at once."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from bench.config import RunConfig
from strategies.group import Group

MIN_EXCHANGE_S = 0.05
MIN_BYTES, MAX_BYTES = 1 << 18, 1 << 23
REPEATS = 3


_measured: dict[tuple[int, int], float] = {}  # by number of ranks and size of a message


def duplex_factor(config: RunConfig, ranks: Group) -> float | None:
    """Return φ between the first and the last rank, the same on every rank. Collective.

    φ is the time in which two ranks send each other the same bytes at once, over the time in which one sends them to
    the other, in messages of the run's size: 1 is full duplex, 2 is half duplex. A dedicated server beats the ring if
    and only if W/S < 2(1−1/W)/(φλ), λ the shard imbalance. None where MPI does not carry the gradients.
    Measured once per launch and message size.
    """
    if not config.kind.message_knob or config.world_size == 1:
        return None
    transport = (config.world_size, min(getattr(config, config.kind.message_knob), MAX_BYTES))
    if transport not in _measured:
        _measured[transport] = _measure(ranks, transport[1])
    return _measured[transport]


def _measure(ranks: Group, message_bytes: int) -> float:
    """Measure φ with messages of that many bytes. Collective."""
    from mpi4py import MPI

    comm = ranks.comm

    def exchange(nbytes: int, both: bool) -> float:
        """Send bytes from the first rank to the last, at the same time as many back if `both`; return seconds."""
        first, last = 0, comm.size - 1
        peer = {first: last, last: first}.get(comm.rank)
        copy: Any = np.zeros((max(1, nbytes // message_bytes), message_bytes), np.uint8)
        comm.Barrier()
        began = time.perf_counter()
        if peer is not None:
            receives, sends = comm.rank == last or both, comm.rank == first or both
            requests = [comm.Irecv(row, peer) for row in (copy.copy() if receives else ())]
            requests += [comm.Isend(row, peer) for row in (copy if sends else ())]
            MPI.Request.Waitall(requests)
        comm.Barrier()
        return float(comm.bcast(time.perf_counter() - began))

    nbytes = MIN_BYTES
    while exchange(nbytes, both=True) < MIN_EXCHANGE_S and nbytes < MAX_BYTES:
        nbytes *= 2
    times = [(exchange(nbytes, both=True), exchange(nbytes, both=False)) for _ in range(REPEATS)]
    return statistics.median(both_s / one_s for both_s, one_s in times)
