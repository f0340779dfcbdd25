"""What MPI must find in its environment, in a launcher and in a rank, before MPI_Init. No torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

# More than a link of 10 Gbit/s holds in 0.2 ms, less than the queue of a slow one.
DEFAULT_SOCKET_BYTES = 256 << 10
POLL_SLEEP_NS = 50_000
# How many ranks of a launch share this machine, as Open MPI's mpirun, MPICH's and srun tell it.
LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE")


def mpi_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what must be set before MPI_Init, in a launcher and in a rank, for all strategies alike.

    Open MPI's own choice for a large allreduce is no ring (Rabenseifner's algorithm up to 5.0), so the ring
    is forced; ranks that wait yield their core. Sockets that grow without limit fill the queues of the network: then
    acknowledgements wait behind data, and traffic in both directions halves.
    """
    settings = {
        "OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
        "OMPI_MCA_coll_tuned_allreduce_algorithm": "4",  # ring
        "OMPI_MCA_coll_han_priority": "0",  # Open MPI 5 would put its hierarchical collectives first
        "OMPI_MCA_osc": "^ucx",  # whose first window in Open MPI 5 prints an error where there is no InfiniBand
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "OMPI_MCA_btl_tcp_sndbuf": str(DEFAULT_SOCKET_BYTES),
        "OMPI_MCA_btl_tcp_rcvbuf": str(DEFAULT_SOCKET_BYTES),
        "MPIR_CVAR_ALLREDUCE_INTRA_ALGORITHM": "ring",  # MPICH
    }
    if list(Path(sys.prefix, "lib").glob("libmpi.so.40")):
        settings["OPAL_PREFIX"] = sys.prefix  # an Open MPI inside the .venv does not know where that is
    if os.geteuid() == 0:
        settings["OMPI_ALLOW_RUN_AS_ROOT"] = settings["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    return {name: environ.get(name, value) for name, value in settings.items()}


def waiting_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what makes a rank's Open MPI 5 sleep between two polls; empty unless ranks share cores.

    To be set in a rank before MPI_Init. Ranks that wait otherwise call sched_yield() between two polls, and Linux 6.18
    sets a process that yields behind all others: one that has polled for long then does not run for seconds. Open MPI 4
    and MPICH have no such setting.
    """
    if _local_ranks(environ) <= _shared_cores():
        return {}
    settings = {
        "OMPI_MCA_threads_pthreads_yield_strategy": "nanosleep",
        "OMPI_MCA_threads_pthreads_nanosleep_time": str(POLL_SLEEP_NS),
    }
    return {name: environ.get(name, value) for name, value in settings.items()}


def _local_ranks(environ: Mapping[str, str]) -> int:
    """Return how many ranks of this launch share this machine, 1 without a launcher. Slurm writes "2(x3),1"."""
    told = next((environ[name] for name in LOCAL_SIZES if name in environ), "")
    return max((int(number) for number in re.findall(r"(?:^|,)([0-9]+)", told)), default=1)


def _shared_cores() -> int:
    """Return how many cores the ranks of this machine share: the launcher's, which may have bound each rank to one."""
    return max(len(os.sched_getaffinity(process)) for process in (0, os.getppid()))
