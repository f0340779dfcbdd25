"""How tests run commands and watch processes."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil

from bench.processes import FORKED_PSRING
from bench.processes import PSRING as EXECUTED
from bench.sweep import template
from strategies.environment import mpi_environment

DEADLINE_S = 300
REPOSITORY = Path(__file__).parents[2]
# The environment before the first test: torch and Horovod set variables of their own in a process that uses them.
AT_FIRST = {**os.environ, **mpi_environment(os.environ), "PYTHONPATH": str(REPOSITORY)}
PSRING = FORKED_PSRING
Launched = subprocess.CompletedProcess[str]


def run_command(argv: list[str], timeout_s: float = DEADLINE_S, **environ: str) -> Launched:
    """Run a command to its end."""
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
        env=make_environ(**environ),
    )  # fmt: skip


def make_environ(**own: str) -> dict[str, str]:
    """Return the environment of a command of a test; its ranks are forked from this session's template."""
    return {**AT_FIRST, **template.environment(AT_FIRST), **own}


def is_rank(process: psutil.Process) -> bool:
    """Whether a process is a rank itself, and neither its launcher nor the client that a launcher started for it."""
    try:
        return "OMPI_COMM_WORLD_RANK" in environ_of(process) and process.cmdline()[1 : len(EXECUTED)] == EXECUTED[1:]
    except psutil.Error:  # it has ended
        return False


def environ_of(process: psutil.Process) -> set[str]:
    """Its environment as NAME=value and as NAME."""
    try:
        environ = process.environ()
        return {*environ, *(f"{name}={value}" for name, value in environ.items())}
    except psutil.Error:
        return set()


def no_rank_left(marker: str) -> bool:
    """Whether every process with this environment variable is gone soon after its launcher."""
    return gone(marker)


def alive(marker: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if marker in environ_of(process)]


def gone(marker: str, within_s: float = 60) -> bool:
    """Whether no process with this environment variable is left at some time before the deadline.

    Looked at twice: a process that is just executing a program has no environment to read.
    """
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not alive(marker):
            time.sleep(0.05)
            if not alive(marker):
                return True
        time.sleep(0.05)
    return False
