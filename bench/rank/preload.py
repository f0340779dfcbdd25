"""Importing this imports what ranks need, and starts nothing: no thread, no MPI, no GPU."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys
from typing import NoReturn

import mpi4py

mpi4py.rc.initialize = False  # group.join starts it in the rank,
mpi4py.rc.finalize = True  # and it ends with the rank

from mpi4py import MPI  # noqa: E402

# torch._dynamo, because torch imports it in the first optimizer that a process makes: 1 CPU-second per rank.
for _name in ("torch._dynamo", "bench.nodes.cluster", "bench.rank.run", "strategies.ddp", "strategies.zero",
              "strategies.fsdp", "strategies.parameter_server.worker",
              "strategies.parameter_server.server"):  # fmt: skip
    importlib.import_module(_name)
with contextlib.suppress(ImportError):  # a launch that needs Horovod says that it is missing
    importlib.import_module("strategies.ring_allreduce")


def end(code: int) -> NoReturn:
    """End a forked process as the interpreter would, but let the kernel free its memory.

    Freeing every object would first copy every page that is shared with the template.
    """
    atexit._run_exitfuncs()
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.Finalize()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader is gone
            stream.flush()
    os._exit(code)
