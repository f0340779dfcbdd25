"""A strategy in a training script of your own: join the ranks that mpirun started, and end with them. No torch."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from strategies.environment import mpi_environment, waiting_environment
from strategies.group import Group, MPIGroup, SingleGroup

if TYPE_CHECKING:
    from mpi4py import MPI

    from strategies.base import Strategy

FLUSH_S = 0.2
POLL_S = 1e-3
# Number of ranks, as launchers tell it: Open MPI's mpirun, MPICH's, horovodrun, srun.
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "HOROVOD_SIZE", "SLURM_STEP_NUM_TASKS")


class TimeoutGroup(MPIGroup):
    """The ranks of an MPI world; a collective call fails after `timeout_s` seconds without one of them."""

    def __init__(self, comm: MPI.Intracomm, timeout_s: float) -> None:
        super().__init__(comm)
        self._timeout_s = timeout_s

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value in rank order on rank 0, an empty list elsewhere. Collective."""
        self.barrier()
        return super().gather(value)

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value everywhere. Collective."""
        self.barrier()
        return super().broadcast(value)

    def barrier(self) -> None:
        """Return once every rank is here; TimeoutError if one does not arrive. Collective."""
        deadline = time.monotonic() + self._timeout_s
        request = self.comm.Ibarrier()
        while not request.Test():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"a rank did not come to prepare() within {self._timeout_s:g} s: every rank must call it, servers "
                    f"before serve(); if one only takes longer, give strategies.create(..., timeout_s=...) more"
                )
            time.sleep(POLL_S)


def join(timeout_s: float) -> Group:
    """Return the group of all ranks that a launcher started, or of this process alone. Collective.

    Sets what MPI must find in the environment, so MPI must not have started yet: a warning if it has. ValueError if
    the launcher started more ranks than MPI knows of.
    """
    launched = launched_size(os.environ)
    if launched == 1:
        return SingleGroup()
    if "mpi4py.MPI" in sys.modules:
        warnings.warn(
            "mpi4py.MPI was imported before strategies.create(), which can no longer set what MPI reads when it starts:"
            " its allreduce may be no ring; call create() first",
            stacklevel=3,
        )
    os.environ.update(mpi_environment(os.environ) | waiting_environment(os.environ))
    from mpi4py import MPI

    if MPI.COMM_WORLD.size != launched:
        raise ValueError(
            f"the launcher started {launched} ranks, MPI knows of {MPI.COMM_WORLD.size}: start them with the mpirun of "
            f"the MPI that mpi4py loads ({MPI.Get_library_version().splitlines()[0]})"
        )
    group = TimeoutGroup(MPI.COMM_WORLD, timeout_s)
    group.comm.Barrier()
    end_together(group.comm)
    return group


def launched_size(environ: Mapping[str, str]) -> int:
    """Return how many ranks a launcher started, 1 without one."""
    return next((int(environ[name]) for name in SIZES if name in environ), 1)


def end_together(comm: MPI.Intracomm) -> None:
    """From now on an exception that nobody handles, on any thread of any rank, ends all ranks."""

    def failed(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
        traceback.print_exception(kind, error, where)
        abort(comm, f"{kind.__name__}: {error}")

    sys.excepthook = failed
    threading.excepthook = lambda given: failed(given.exc_type, given.exc_value, given.exc_traceback)


def watch_exit(strategy: Strategy, comm: MPI.Intracomm) -> None:
    """End all ranks if this one ends before it has closed its strategy: the others would wait for it."""
    close = strategy.close

    def ended() -> None:
        abort(comm, "the process ends without strategy.close()")

    def close_and_unwatch() -> None:
        close()
        atexit.unregister(ended)

    atexit.register(ended)
    strategy.close = close_and_unwatch  # type: ignore[method-assign]


def abort(comm: MPI.Intracomm, reason: str) -> NoReturn:
    """Print why this rank fails, and end all ranks with exit code 1."""
    print(f"psring: rank {comm.rank} failed: {reason}; all ranks end", file=sys.stderr, flush=True)
    time.sleep(FLUSH_S)  # so that the line above is forwarded first
    comm.Abort(1)
    os._exit(1)
