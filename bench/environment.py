"""The environment of a run: versions, host, devices, MPI library, commit."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

from bench.config import BadInput
from bench.mpi import find_launcher, without_launcher
from strategies.environment import mpi_environment

# Settings of MPI, Horovod, Gloo, NCCL, torch and the arithmetic libraries; what a launcher itself sets for each launch
# (addresses, jobs) is not among them.
SETTINGS = (
    "OMPI_MCA_", "MPIR_CVAR_", "UCX_", "FI_", "HOROVOD_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "OMP_", "GOMP_",
    "KMP_", "MKL_", "OPENBLAS_", "MALLOC_", "CUDA_", "CUBLAS_", "PYTHONOPTIMIZE", "PYTHONMALLOC", "LD_PRELOAD",
)  # fmt: skip
ROUTING = tuple(
    f"OMPI_MCA_{name}"
    for name in ("ess", "orte", "prte", "pmix", "plm", "oob", "initial_", "num_procs", "cpu_type", "PREFIXES")
)
HOROVODRUNS = ("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS", "NCCL_SOCKET_IFNAME")  # it sets them
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
        "settings": settings(os.environ),
    }


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the libraries read and that may change a speed, psring's own for MPI included."""
    found = {**without_launcher(environ), **mpi_environment(environ)}
    told = (*ROUTING, *(HOROVODRUNS if "HOROVOD_RANK" in environ else ()))
    return {name: found[name] for name in sorted(found) if name.startswith(SETTINGS) and not name.startswith(told)}


def difference(before: object, now: object, name: str = "") -> str:
    """Return the first value that differs between two environments, as 'name: x then, y now'; blank if none does."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = ((f"{name}.{key}" if name else key, before.get(key), now.get(key)) for key in {**before, **now})
        return next(filter(None, (difference(one, two, where) for where, one, two in parts)), "")
    shown = ["unset" if value is None else str(value) for value in (before, now)]
    return "" if before == now else f"{name}: {shown[0]} then, {shown[1]} now"


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
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of another repository
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True, env=own)
    except (OSError, subprocess.SubprocessError):
        return []
    return [" ".join(line.split()) for line in result.stdout.strip().splitlines()]
