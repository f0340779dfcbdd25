"""Give psring damaged settings in this process: it must end with 0, or with 2 and one line, and soon."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import yaml

from bench import records
from bench.cli import main
from bench.config import BadInput, RunConfig
from bench.hosts import read_hostfile
from bench.predict import Cell, ClusterCalibration, step_time
from bench.predict.published.corpus import read_rows
from bench.predict.published.score import predict as published
from bench.rank import saved
from bench.tokens import check_bin
from tests.support import mutate
from tests.support.synthetic import make_record, make_steps

DEADLINE_S = 10  # of CPU time, which other work on the machine does not use up
MAKERS = {
    "sweep": mutate.sweep_file, "tuned": mutate.tuned_file, "calibration": mutate.calibration_file,
    "hosts": mutate.host_file, "data": mutate.data_file, "costs": mutate.costs_file,
    "predictions": mutate.prediction_file, "published": mutate.published_file, "weights": mutate.weights_file,
}  # fmt: skip


def settings(folder: Path, seeds: range) -> Iterator[tuple[int, str]]:
    """Try one damaged file per seed; yield the seeds that psring does not answer as it must, and what happened."""
    make_folder(folder / "measured")
    for seed in seeds:
        kind = list(MAKERS)[seed % len(MAKERS)]
        file = folder / f"damaged.{kind}"
        file.write_bytes(MAKERS[kind](random.Random(seed)))
        problem = _problem(_reading(file, kind))
        if problem:
            yield seed, f"{kind}: {problem}"


def folders(folder: Path, seeds: range) -> Iterator[tuple[int, str]]:
    """Try one damaged results folder per seed with a command that reads it; yield as `settings` does."""
    good = folder / "good"
    make_folder(good)
    for seed in seeds:
        damaged = folder / "damaged"
        shutil.copytree(good, damaged)
        mutate.results_folder(random.Random(seed), damaged)
        command = ("report", "status", "compare", "sweep")[seed % 4]
        words = {
            "report": ["report", str(damaged)], "status": ["status", str(damaged)],
            "compare": ["compare", str(good), str(damaged)],
            "sweep": ["sweep", str(good / "sweep.yaml"), "--dry-run", "--out", str(damaged)],
        }[command]  # fmt: skip
        problem = _problem(partial(main, words), may_say=command == "compare")
        shutil.rmtree(damaged)
        if problem:
            yield seed, f"{command}: {problem}"


def make_folder(folder: Path) -> None:
    """Write a results folder of 2 strategies x 3 launches with samples."""
    (folder / "steps").mkdir(parents=True)
    for strategy in ("ring_allreduce", "parameter_server"):
        for repeat in range(3):
            record = make_record(repeat=repeat, strategy=strategy, num_workers=2, tokens_per_s=1000.0 + repeat)
            records.append(folder, record)
            records.write_steps(folder, record.run_id, make_steps(record))
    grid = [{"strategy": ["ring_allreduce", "parameter_server"], "num_workers": 2, "num_servers": 1}]
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"grid": grid, "repeats": 3}), encoding="utf-8")
    (folder / "environment.json").write_text('{"host": "here", "packages": {"torch": "2"}}', encoding="utf-8")


def _reading(file: Path, kind: str) -> Callable[[], int]:
    """Return what reads a file of a kind and starts nothing; its value is an exit code."""
    if kind == "hosts":
        return partial(_command, lambda: read_hostfile(file))
    if kind == "data":
        return partial(_command, lambda: check_bin(file))
    if kind == "costs":
        return partial(_command, lambda: _predict_from(file))
    if kind == "predictions":
        return partial(main, ["validate", str(file.with_name("measured")), "--predictions", str(file)])
    if kind == "published":
        return partial(_command, lambda: [published(row, samples=4) for row in read_rows(file)])
    if kind == "weights":
        return partial(_command, lambda: saved.read(file))
    if kind == "sweep":
        return partial(main, ["sweep", str(file), "--dry-run"])
    sweep = file.with_name("sweep.yaml")
    cell = {
        "tuned": f"strategy: [ddp, mpi_ring], num_workers: 2, tuned: '{file}'",
        "calibration": f"compute: emulated, compute_from: '{file}'",
    }[kind]
    sweep.write_text(f"grid: [{{{cell}}}]\n", encoding="utf-8")
    return partial(main, ["sweep", str(sweep), "--dry-run"])


def _predict_from(file: Path) -> None:
    """Predict a step from a calibration: it must be a number."""
    config = RunConfig(strategy="mpi_ring", num_workers=4, compute="none", link="1gbit")
    step_s = step_time(Cell(config), ClusterCalibration.read(file)).step_s
    assert 0 < step_s < 1e9, step_s


def _command(read: Callable[[], object]) -> int:
    """Do what the command does around a function."""
    try:
        read()
    except BadInput as error:
        print(f"psring: {error}", file=sys.stderr)
        return 2
    return 0


def _problem(act: Callable[[], int], may_say: bool = False) -> str | None:
    """Run a command; return what it did wrong, None if nothing. `may_say`: it may end with 1, and say why."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with _deadline(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = act()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    said = err.getvalue().splitlines()
    if code == 2 and len(said) == 1 and said[0].startswith("psring: ") and said[0].isprintable():
        return None
    if (code == 0 and not said) or (code in (0, 1) and may_say):
        return None
    return f"exit code {code}: {said[:3]}"


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def late(*_: object) -> NoReturn:
        raise TimeoutError(f"not done within {DEADLINE_S} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, DEADLINE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
