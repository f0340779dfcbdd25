"""How well what carries a run's messages carries them in both directions at once."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from bench.config import RunConfig

LONG_ENOUGH_S = 0.05
FIRST_BYTES, MOST_BYTES = 1 << 18, 1 << 23
TURNS = 3


def duplex_factor(config: RunConfig) -> float | None:
    """Return φ between the first and the last rank, in messages of the run's own size. Collective.

    How much longer two ranks take to send each other a copy at once than one takes to send the other one: 1 is full
    duplex, 2 is half. It decides where the two topologies cross: a dedicated server beats the ring if and only if
    W/S < 2(1−1/W)/(φλ), λ its imbalance. Known on rank 0 only; None where MPI does not carry the gradients.
    """
    if not config.kind.message_knob or config.world_size == 1:
        return None
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    message_bytes: int = getattr(config, config.kind.message_knob)

    def exchange(nbytes: int, back: bool) -> float:
        """Send so many bytes from the first rank to the last, and as many back at the same time; return seconds."""
        first, last = 0, comm.size - 1
        peer = {first: last, last: first}.get(comm.rank)
        copy: Any = np.zeros((max(1, nbytes // message_bytes), message_bytes), np.uint8)
        comm.Barrier()
        began = time.perf_counter()
        if peer is not None:
            receives, sends = comm.rank == last or back, comm.rank == first or back
            requests = [comm.Irecv(row, peer) for row in (copy.copy() if receives else ())]
            requests += [comm.Isend(row, peer) for row in (copy if sends else ())]
            MPI.Request.Waitall(requests)
        comm.Barrier()
        return float(comm.bcast(time.perf_counter() - began))

    nbytes = FIRST_BYTES
    while exchange(nbytes, back=True) < LONG_ENOUGH_S and nbytes < MOST_BYTES:
        nbytes *= 2
    times = [(exchange(nbytes, back=True), exchange(nbytes, back=False)) for _ in range(TURNS)]
    return statistics.median(both / alone for both, alone in times)
