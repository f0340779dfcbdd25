"""psring doctor: what this machine can run, what is missing, and the command that installs it."""

from __future__ import annotations

import os
import re
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

# Each runs in a process of its own: a broken library must not end psring doctor.
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
    """The result of one check: what was checked, whether it works, what was found, and how to fix it."""

    what: str
    works: bool
    found: str
    fix: str = ""
    needed: bool = True


def print_findings() -> int:
    """Run and print all checks; return 0 if every strategy can run, 1 otherwise."""
    findings = examine()
    table = Table(title="psring doctor")
    for column in ("", "what", "found", "how to fix it"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = "ok" if finding.works else ("MISSING" if finding.needed else "absent")
        table.add_row(mark, finding.what, escape(finding.found), escape("" if finding.works else finding.fix))
    Console().print(table)
    return 0 if all(finding.works for finding in findings if finding.needed) else 1


def examine() -> list[Finding]:
    """Run every check, each in processes of its own."""
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


def _library(what: str, package: str, fix: str) -> Finding:
    version = environment.package_version(package)
    return Finding(what, version is not None, version or "not installed", fix)


def _attempt(what: str, argv: list[str] | Callable[[], list[str]], fix: str) -> Finding:
    try:
        command = argv() if callable(argv) else argv
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **mpi_environment(os.environ)},
        )
    except BadInput as error:
        return Finding(what, False, str(error), fix)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(what, False, str(error), fix)
    works = result.returncode == 0
    return Finding(what, works, result.stdout.strip() or "works" if works else _reason(result.stderr), fix)


def _reason(stderr: str) -> str:
    """Return the last line that names an error, the last line of text where none does: mpirun writes a notice below."""
    lines = [line.strip() for line in stderr.splitlines() if any(character.isalnum() for character in line)]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["no output"])[-1]


def _mpirun(program: str) -> list[str]:
    mpirun = find_launcher("mpirun")
    oversubscribe = ["--oversubscribe"] if is_open_mpi(mpirun) else []
    return [mpirun, "-n", "2", *oversubscribe, sys.executable, "-c", program]


def _emulated_nodes() -> Finding:
    """Check whether psring can use this mpirun on emulated nodes."""
    version = environment.mpi_version() or "no mpirun"
    works = "Open MPI" in version
    found = version if works else f"{version}: no emulated nodes, no network_interface"
    return Finding("mpirun for emulated nodes", works, found, "use Open MPI 4.1 or 5", needed=False)


def _horovodrun() -> list[str]:
    return [find_launcher("horovodrun"), "--gloo", "-np", "2", "-H", "localhost:2", sys.executable, "-c", _HOROVOD]


def _cores() -> Finding:
    cores = environment.cores()
    found = f"{environment.cpu_name()}, {cores}"
    return Finding(
        "CPU cores", cores >= 2, found, "with more ranks than cores every row is labelled oversubscribed", needed=False
    )


def _gpu() -> Finding:
    name = environment.collect()["gpu"]
    return Finding("GPU", name is not None, str(name or "none"), "CPU runs need none", needed=False)
