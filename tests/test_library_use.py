"""A user's own script under plain mpirun: it trains as one process does, and no failure hangs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bench.mpi import find_launcher
from strategies.environment import mpi_environment
from strategies.join import join
from tests.support.processes import REPOSITORY, Launched, run_command

pytestmark = pytest.mark.launcher

EXAMPLE = REPOSITORY / "examples" / "train.py"
HEAD = """
import sys, time, torch, strategies
strategy = strategies.create("parameter_server", num_servers=1, timeout_s=5.0)
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
TRAIN = """
strategy.prepare(model, optimizer)
if strategy.is_server:
    strategy.serve()
else:
    for step in range(5):
        if strategy.worker == 1 and step == 3:
            {failure}
        model(torch.ones(3)).sum().backward()
        strategy.synchronize()
        strategy.step()
strategy.close()
"""
SERVER = "{act} if strategy.is_server else strategy.prepare(model, optimizer)"
FAILURES = {
    "an exception": (
        TRAIN.format(failure="raise ValueError('no data')"),
        "rank 1 failed: ValueError: no data",
    ),
    "an early end": (TRAIN.format(failure="sys.exit()"), "rank 1 failed: the process ends without strategy.close()"),
    "fewer steps": (TRAIN.format(failure="break"), "worker 1 has closed, and worker 0 takes a further step"),
    "no prepare on the server": (SERVER.format(act="strategy.serve()"), "serve() before prepare()"),
    "a server that stays away": (SERVER.format(act="time.sleep(60)"), "a rank did not come to prepare() within 5 s"),
    "another model": ("if strategy.is_server: model = torch.nn.Linear(3, 3)\n" + TRAIN, "must build the same"),
}


def mpirun(ranks: int, *argv: object) -> Launched:
    """Run Python on n ranks, without the settings that psring's own launches give MPI."""
    unset = [word for name in mpi_environment({}) if name.startswith("OMPI_MCA_") for word in ("-u", name)]
    prefix = [find_launcher("mpirun"), "-n", str(ranks), "--oversubscribe", "--bind-to", "none"]
    return run_command(["env", *unset, *prefix, sys.executable, "-W", "error::UserWarning", *map(str, argv)])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of one process without MPI."""
    path = tmp_path_factory.mktemp("alone") / "weights"
    ended = run_command([sys.executable, str(EXAMPLE), "local", str(path)])
    assert ended.returncode == 0, ended.stderr
    return load(path, 0)


def load(path: Path, worker: int) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(f"{path}.{worker}")
    return {name.removeprefix("module."): value for name, value in weights.items()}  # DDP's wrapper adds it


@pytest.mark.parametrize(
    ("strategy", "ranks"), [("parameter_server", 3), ("ring_allreduce", 2), ("mpi_ring", 2), ("ddp", 2)]
)
def test_the_example_ends_with_one_processs_weights(
    strategy: str, ranks: int, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    ended = mpirun(ranks, EXAMPLE, strategy, tmp_path / "weights")
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.0", "weights.1"]
    first, second = (load(tmp_path / "weights", worker) for worker in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("script", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_failure_of_one_rank_ends_all_and_is_named(script: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(HEAD + script)
    ended = mpirun(3, tmp_path / "train.py")
    assert ended.returncode != 0
    assert reason in ended.stderr


UNEVEN = """
import torch, strategies
with strategies.create("ring_allreduce") as strategy:
    model = torch.nn.Linear(3, 2)
    strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for step in range(3 + strategy.worker):
        model(torch.ones(3)).sum().backward()
        strategy.synchronize()
        strategy.step()
"""


def test_a_worker_that_takes_a_further_step_under_a_ring_ends_all(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(UNEVEN)
    ended = mpirun(2, tmp_path / "train.py")
    assert ended.returncode != 0
    assert "rank 0 has closed after 3 steps, and rank 1 takes a further one" in ended.stderr


RING = """
import strategies, torch
with strategies.create("ring_allreduce") as strategy:
    model = torch.nn.Linear(3, 2)
    strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    print(strategy.observe().allreduce_algorithm, flush=True)
"""


def test_a_scripts_allreduce_is_a_ring(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(RING)
    ended = mpirun(3, tmp_path / "train.py")
    assert "".join(ended.stdout.split()) == 3 * "ring", ended.stdout + ended.stderr  # lines of ranks may interleave


def test_a_script_is_told_that_mpi_started_too_early_and_of_another_mpis_mpirun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mpi4py import MPI

    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with (
        pytest.warns(UserWarning, match="mpi4py.MPI was imported before"),
        pytest.raises(ValueError, match=f"2 ranks, MPI knows of {MPI.COMM_WORLD.size}"),
    ):
        join(timeout_s=1.0)
