"""Importing this imports what ranks need, and starts nothing: no thread, no MPI, no GPU."""

from __future__ import annotations

import contextlib

import mpi4py

mpi4py.rc.initialize = False  # group.join starts it in the rank,
mpi4py.rc.finalize = True  # and it ends with the rank

from mpi4py import MPI  # noqa: E402

import bench.nodes.cluster  # noqa: E402
import bench.rank.run  # noqa: E402
import strategies.ddp  # noqa: E402
import strategies.mpi_ring  # noqa: E402
import strategies.parameter_server  # noqa: E402

with contextlib.suppress(ImportError):  # a launch that needs it says what is missing
    import strategies.ring_allreduce

__all__ = ["MPI", "bench", "strategies"]
