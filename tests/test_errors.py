"""Bad input: one line that names it and the way out, exit code 2, nothing half-written, nobody left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bench import mpi
from bench.config import BadInput
from bench.mpi import find_launcher
from bench.sweep.file import Sweep
from bench.sweep.run import run_sweep
from tests.support.processes import PSRING, no_rank_left, run_command


def only_line(text: str) -> str:
    lines = [line for line in text.splitlines() if "psring: " in line]
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--batchsize", "4"], "unknown argument '--batchsize'; did you mean '--batch-size'"),
        (["rum"], "invalid choice: 'rum'"),
        (["run", "--strategy", "ring"], "no strategy is called 'ring'"),
        (["run", "--strategy", "parameter_server", "--num-servers", "1"], "leave no worker"),
        (["run", "--strategy", "parameter_server", "--num-servers", "1", "--poll-s", "soon"], "valid number"),
        (["run", "--batch-size", "5", "--gradient-accumulation", "2"], "5 does not divide"),
        (["run", "--data", "missing.bin"], "there is no file missing.bin"),
        (["run", "--data", "truncated.bin"], "3 bytes, not a whole number"),
        (["run", "--data", "large.bin"], "token 999, outside vocab_size: 256"),
        (["run", "--out", "full"], "not empty (something is there)"),
        (["run", "--out", "file/inside"], "cannot be written"),
        (["run", "--save-parameters", "nowhere/x.pt"], "cannot be written"),
        (["run", "--strategy", "ring_allreduce", "--wire-dtype", "bf16"], "no bf16"),
        (["run", "--compute", "emulated"], "takes its times from exactly one of"),
        (["sweep", "missing.yaml", "--out", "new"], "no such sweep file"),
        (["sweep", "bad.yaml", "--out", "new"], "did you mean 'num_workers'"),
        (["sweep", "good.yaml"], "--out DIR is missing"),
        (["sweep", "good.yaml", "--out", "full"], "not empty"),
        (["report", "full"], "no runs.jsonl"),
        (["data", "prepare", "missing", "--out", "x.bin"], "there is no file missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_is_refused_in_one_line(
    psring: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/something").touch()
    Path("file").touch()
    Path("truncated.bin").write_bytes(b"\0\0\0")
    np.full(5000, 999, dtype="<u2").tofile("large.bin")
    Path("good.yaml").write_text("{grid: [{strategy: local}]}")
    Path("bad.yaml").write_text("{grid: [{strategy: ddp, num_worker: 2}]}")
    before = sorted(tmp_path.rglob("*"))
    ended = psring(*arguments)
    assert ended.returncode == 2, ended.stderr
    assert said in only_line(ended.stderr)
    assert ended.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("ranks", "arguments", "said"),
    [
        (2, ["--strategy", "parameter_server", "--num-servers", "2"], "leave no worker"),
        (2, ["--strategy", "ddp", "--out", "full"], "not empty"),
        (3, ["--strategy", "ddp", "--data", "missing.bin"], "there is no file"),
        (2, ["--strategy", "ddp", "--nonsense"], "unknown argument '--nonsense'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_is_printed_once_for_all_ranks(
    mpirun: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ranks: int, arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/something").touch()
    marker = f"PSRING_TEST_{os.getpid()}"
    ended = mpirun(ranks, "run", *arguments, **{marker: "1"})
    assert ended.returncode == 2, ended.stderr
    assert said in only_line(ended.stderr)
    assert no_rank_left(marker)


@pytest.mark.launcher
def test_unequal_configs_are_named(tmp_path: Path) -> None:
    one = [*PSRING, "run", "--strategy", "ddp", "--batch-size", "4"]
    other = [*PSRING, "run", "--strategy", "ddp", "--batch-size", "8"]
    mpirun = [find_launcher("mpirun"), "--oversubscribe", "--bind-to", "none"]
    ended = run_command([*mpirun, "-n", "1", *one, ":", "-n", "1", *other])
    assert ended.returncode == 2, ended.stderr
    assert "batch_size: rank 0 was given 4, rank 1 8" in only_line(ended.stderr)


@pytest.mark.launcher
def test_horovodrun_cannot_start_the_server_topology(horovodrun: Callable[..., object]) -> None:
    ended = horovodrun(2, "run", "--strategy", "parameter_server", "--num-servers", "1")
    assert ended.returncode != 0
    assert "horovodrun cannot start parameter_server; use launcher: mpirun" in only_line(ended.stdout + ended.stderr)


def test_a_missing_launcher_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"mpirun is not on PATH; run scripts/setup\.sh"):
        mpi.find_launcher("mpirun")
    plan = Sweep.model_validate({"grid": [{"strategy": "ddp", "num_workers": 2}]})
    with pytest.raises(BadInput, match="mpirun is not on PATH"):
        run_sweep(plan, "plan", tmp_path / "out", Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_missing_horovod_is_named(psring: Callable[..., object], tmp_path: Path) -> None:
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod/__init__.py").write_text("raise ImportError('libmpi.so.40: not found')")
    ended = psring("run", "--strategy", "ring_allreduce", PYTHONPATH=f"{tmp_path}:{Path(__file__).parent.parent}")
    assert ended.returncode == 2, ended.stderr
    assert "ring_allreduce cannot be imported (libmpi.so.40: not found)" in only_line(ended.stderr)
