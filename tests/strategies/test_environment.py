"""Laws of what a rank sets for MPI: ranks that share cores sleep between polls, and the user's values stay."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from strategies.environment import waiting_environment

STRATEGY = "OMPI_MCA_threads_pthreads_yield_strategy"


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher has 4 cores, and has bound this rank to one of them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0} if process == 0 else {0, 1, 2, 3})


@pytest.mark.parametrize(
    ("environ", "sleeps"),
    [
        ({}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_SIZE": "64"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "5"}, True),
        ({"MPI_LOCALNRANKS": "5"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x12)"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,5(x2),1"}, True),
    ],
)
def test_ranks_sleep_between_polls_where_they_are_more_than_cores(environ: dict[str, str], sleeps: bool) -> None:
    found = waiting_environment(environ)
    assert found.get(STRATEGY) == ("nanosleep" if sleeps else None)
    assert bool(found) == sleeps


def test_a_value_of_the_users_stays() -> None:
    given = {"OMPI_COMM_WORLD_LOCAL_SIZE": "5", STRATEGY: "sched_yield"}
    assert waiting_environment(given)[STRATEGY] == "sched_yield"


def test_open_mpi_knows_these_settings() -> None:
    beside = Path(sys.executable).with_name("ompi_info")
    program = str(beside) if beside.exists() else shutil.which("ompi_info")
    if program is None:
        pytest.skip("needs Open MPI")
    arguments = [program, "--param", "threads", "pthreads", "--level", "9", "--parsable"]
    environ = {**os.environ, **waiting_environment({"OMPI_COMM_WORLD_LOCAL_SIZE": "5"})}
    told = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=60, check=True).stdout
    if "threads" not in told:
        pytest.skip("Open MPI 4 has none")
    for name in (STRATEGY, "OMPI_MCA_threads_pthreads_nanosleep_time"):
        assert f"{name.removeprefix('OMPI_MCA_')}:source:environment" in told
