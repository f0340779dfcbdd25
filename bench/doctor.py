"""What this machine can run, what is missing, and the command that mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import environment
from bench.config import BadInput
from bench.mpi import find_launcher, is_open_mpi
from strategies.environment import mpi_environment

PROBE_TIMEOUT_S = 90

# Each runs in a process of its own: a broken library must not take the doctor with it.
_MPI = (
    "from mpi4py import MPI; size = MPI.COMM_WORLD.allreduce(1);"
    "assert size == 2, 'ranks do not find each other: mpirun and the library that mpi4py loads are of different MPIs'"
)
_HOROVOD = (
    "import torch, horovod.torch as hvd; hvd.init();"
    "assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == hvd.size()"
)
_ONE_MPI = (
    "import os, re, mpi4py.MPI as m, horovod.torch;"
    "found = {os.path.realpath(l.split()[-1]) for l in open('/proc/self/maps') if re.search(r'/libmpi(ch)?\\.so', l)};"
    "assert len(found) == 1, 'two MPI libraries: ' + ', '.join(found);"
    "print(re.split(r'[,\\n]', m.Get_library_version())[0] + ' in ' + os.path.dirname(*found))"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: is it there, what was seen, and what to do if not."""

    what: str
    good: bool
    seen: str
    mend: str = ""
    needed: bool = True


def report() -> int:
    """Print what was found; return 0 if every strategy can run, 1 otherwise."""
    findings = examine()
    table = Table(title="psring doctor")
    for column in ("", "what", "seen", "to mend it"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = "ok" if finding.good else ("MISSING" if finding.needed else "absent")
        table.add_row(mark, finding.what, escape(finding.seen), escape("" if finding.good else finding.mend))
    Console().print(table)
    return 0 if all(finding.good for finding in findings if finding.needed) else 1


def examine() -> list[Finding]:
    """Try every part for real, in processes of their own."""
    setup = "scripts/setup.sh"
    return [
        _library("PyTorch", "torch", setup),
        _library("mpi4py", "mpi4py", setup),
        _library("Horovod", "horovod", "scripts/install_horovod.sh (with .venv active)"),
        _attempt("one MPI library for both", [sys.executable, "-c", _ONE_MPI], "remove .venv, then " + setup),
        _attempt("mpirun, 2 ranks", lambda: _mpirun(_MPI), setup + ", or load your cluster's MPI module"),
        _attempt("Horovod over MPI", lambda: _mpirun("import mpi4py.MPI; " + _HOROVOD), setup),
        _attempt("horovodrun --gloo", _horovodrun, setup),
        _emulated_nodes(),
        _cores(),
        _gpu(),
    ]


def _library(what: str, package: str, mend: str) -> Finding:
    version = environment.package_version(package)
    return Finding(what, version is not None, version or "not installed", mend)


def _attempt(what: str, argv: list[str] | Callable[[], list[str]], mend: str) -> Finding:
    try:
        found = argv() if callable(argv) else argv
        result = subprocess.run(
            found,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **mpi_environment(os.environ)},
        )
    except BadInput as error:
        return Finding(what, False, str(error), mend)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(what, False, str(error), mend)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    good = result.returncode == 0
    return Finding(what, good, result.stdout.strip() or "works" if good else (lines or ["no output"])[-1], mend)


def _mpirun(program: str) -> list[str]:
    mpirun = find_launcher("mpirun")
    oversubscribe = ["--oversubscribe"] if is_open_mpi(mpirun) else []
    return [mpirun, "-n", "2", *oversubscribe, sys.executable, "-c", program]


def _emulated_nodes() -> Finding:
    """Whether this mpirun is one that psring can start on emulated nodes."""
    version = environment.mpi_version() or "no mpirun"
    good = "Open MPI" in version
    seen = version if good else f"{version}: no emulated nodes, no network_interface, no template for ranks"
    return Finding("mpirun for emulated nodes", good, seen, "use Open MPI 4.1 or 5", needed=False)


def _horovodrun() -> list[str]:
    return [find_launcher("horovodrun"), "--gloo", "-np", "2", "-H", "localhost:2", sys.executable, "-c", _HOROVOD]


def _cores() -> Finding:
    cores = environment.cores()
    seen = f"{environment.cpu_name()}, {cores}"
    return Finding(
        "CPU cores", cores >= 2, seen, "with more ranks than cores every row is labelled oversubscribed", needed=False
    )


def _gpu() -> Finding:
    name = environment.collect()["gpu"]
    return Finding("GPU", name is not None, str(name or "none"), "CPU runs need none", needed=False)
