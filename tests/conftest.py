"""Set up what MPI must find in the environment, and how tests start ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from bench.launch import find_launcher, mpi_environment

os.environ.update(mpi_environment(os.environ))

# A test never asserts a time, and CI's examples are the same every day.
settings.register_profile("psring", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("psring")

DEADLINE_S = 300
Launched = subprocess.CompletedProcess[str]
PSRING = [sys.executable, "-m", "bench.cli"]


def run_command(argv: list[str], timeout_s: float = DEADLINE_S, **environ: str) -> Launched:
    """Run a command to its end."""
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **environ},
    )  # fmt: skip


@pytest.fixture
def psring() -> Callable[..., Launched]:
    """Run `psring ARGUMENTS` in a process of its own."""
    return lambda *arguments, **environ: run_command([*PSRING, *map(str, arguments)], **environ)


@pytest.fixture
def mpirun() -> Callable[..., Launched]:
    """Run `psring ARGUMENTS` on n ranks under mpirun."""

    def launch(ranks: int, *arguments: object, **environ: str) -> Launched:
        prefix = [find_launcher("mpirun"), "-n", str(ranks), "--oversubscribe", "--bind-to", "none"]
        return run_command([*prefix, *PSRING, *map(str, arguments)], **environ)

    return launch


@pytest.fixture
def horovodrun() -> Callable[..., Launched]:
    """Run `psring ARGUMENTS` on n ranks under horovodrun over Gloo."""

    def launch(ranks: int, *arguments: object) -> Launched:
        prefix = [find_launcher("horovodrun"), "--gloo", "-np", str(ranks), "-H", f"localhost:{ranks}"]
        return run_command([*prefix, *PSRING, *map(str, arguments)])

    return launch
