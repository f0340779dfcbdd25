"""Set up what MPI must find in the environment, and how tests start ranks."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import settings

from bench.mpi import find_launcher
from tests.support.processes import AT_FIRST, PSRING, Launched, run_command

os.environ.update(AT_FIRST)

torch.set_num_threads(1)  # ranks that are threads of this process would each start a team of threads that spin

# A test never asserts a time, and CI's examples are the same every day.
settings.register_profile("psring", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("psring")


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
