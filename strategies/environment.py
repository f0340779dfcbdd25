"""What MPI must find in its environment, in a launcher and in a rank, before MPI_Init. No torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# More than a link of 10 Gbit/s holds in 0.2 ms, less than the queue of a slow one.
DEFAULT_SOCKET_BYTES = 256 << 10


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
