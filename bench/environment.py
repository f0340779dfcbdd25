"""The environment of a run: versions, host, devices, MPI library, commit."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

from bench.config import BadInput
from bench.mpi import find_launcher
from strategies.environment import mpi_environment

PACKAGES = ("psring", "torch", "mpi4py", "horovod", "numpy", "pandas", "matplotlib", "scipy", "pydantic")


@cache
def collect() -> dict[str, object]:
    """Return what may change a result, as JSON values; needs neither MPI nor a GPU."""
    return {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": _first_line(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "mpi": mpi_version(),
        "commit": commit(),
        "mpi_settings": {k: v for k, v in mpi_environment(os.environ).items() if k.startswith(("OMPI_MCA", "MPIR"))},
    }


def digest(environment: dict[str, object]) -> str:
    """Return eight hexadecimal digits of a hash of a collected environment."""
    return hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:8]


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """Return the processor's model name, or its architecture where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def package_version(name: str) -> str | None:
    """Return the installed version of a package, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def mpi_version() -> str | None:
    """Return what `mpirun --version` says first, MPICH's with its version; None without mpirun."""
    try:
        lines = _lines([find_launcher("mpirun"), "--version"])
    except BadInput:
        return None
    return " ".join(lines[:2] if lines[:1] == ["HYDRA build details:"] else lines[:1]) or None


def commit() -> str | None:
    """Return the commit of psring's checkout, with -dirty if files differ from it; None outside a checkout."""
    here = ["git", "-C", str(Path(__file__).parent)]
    head = _first_line([*here, "rev-parse", "--short=12", "HEAD"])
    changed = _first_line([*here, "status", "--porcelain", "--untracked-files=no"])
    return f"{head}-dirty" if head and changed else head


def _first_line(argv: list[str]) -> str | None:
    return next(iter(_lines(argv)), None)


def _lines(argv: list[str]) -> list[str]:
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [" ".join(line.split()) for line in result.stdout.strip().splitlines()]
