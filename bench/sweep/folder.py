"""A sweep's results folder: locked, resumed only in the environment that measured it, recovered after a kill."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from bench import environment, failures, files, inputs, records
from bench.config import BadInput, DiskFull, RunConfig
from bench.records import RunRecord
from bench.sweep.file import Sweep, read_sweep

SCRATCH = ".running"  # of the launch that is running: its plan, its log, its ranks' records and samples
MIN_FREE_BYTES = 1 << 18  # for a launch's log and samples


@contextlib.contextmanager
def locked(out: Path, sweep: Sweep, cells: Sequence[RunConfig]) -> Iterator[str]:
    """Create or reopen a results folder of these cells under a lock; yield the digest of this environment.

    If the block raises, the scratch folder stays, so that the next sweep can recover its records.
    BadInput if the folder is not writable, holds something else, is in use, or has runs of another environment or of
    files that have changed since.
    """
    files.open_folder(out, resumable=True)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BadInput(f"--out {out}: another sweep is writing there; wait for it or choose another folder") from None
    try:
        yield _prepare(out, sweep, cells)
        shutil.rmtree(out / SCRATCH, ignore_errors=True)
    finally:
        lock.release()


def _prepare(out: Path, sweep: Sweep, cells: Sequence[RunConfig]) -> str:
    """Check that the runs are this environment's, recover a killed sweep's records, write sweep and environment."""
    read = check_inputs(out, cells)
    current = environment.collect()
    digest = environment.digest(current)
    known = read_records(out)
    others = {record.environment for record in known} - {digest}
    if others:
        differs = environment.difference({**known_environment(out), "inputs": None}, {**current, "inputs": None})
        raise BadInput(
            f"--out {out}: its runs come from another commit, host, library version or setting "
            f"({differs or ', '.join(sorted(others))}); choose a new folder"
        )
    names = {record.run_id for record in known}
    for record in collect_records(out, digest):
        if record.run_id not in names:
            records.append(out, record)
    files.write_json(out / "environment.json", {**current, "inputs": read})
    write_sweep(out, sweep)
    return digest


def write_sweep(out: Path, sweep: Sweep) -> None:
    """Write the sweep as it runs, with what its probes found, to sweep.yaml."""
    files.write_whole(out / "sweep.yaml", yaml.safe_dump(sweep.model_dump(exclude_none=True), sort_keys=False))


def with_probes(sweep: Sweep, out: Path) -> Sweep:
    """Return the sweep with what its probes found when it ran in this folder before, and the slowdown decided then."""
    try:
        before = read_sweep(out / "sweep.yaml")
    except BadInput:  # it has not run yet, or the file is not its
        return sweep
    found = {"probed": sweep.probed or before.probed, "slowdown": sweep.slowdown or before.slowdown}
    return sweep.model_copy(update=found)


def check_inputs(out: Path, cells: Iterable[RunConfig]) -> dict[str, str]:
    """Return the files that the folder's runs and these cells read, with a digest of their content.

    BadInput if one of them has changed since.
    """
    read, now = known_environment(out).get("inputs"), inputs.identify(cells)
    known = read if isinstance(read, dict) else {}
    inputs.check_same(known, now, out)
    return {**known, **now}


def known_environment(out: Path) -> dict[str, Any]:
    """Return environment.json; empty if there is none, or nothing that a sweep wrote."""
    try:
        found = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_records(out: Path) -> list[RunRecord]:
    """Return the last record of each run in a folder; none if nothing ran yet."""
    return records.read(out) if (out / "runs.jsonl").exists() else []


def new_scratch(out: Path) -> Path:
    """Return an empty scratch folder for a launch, with a folder `result` for its ranks' records and samples."""
    scratch = out / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    files.own_folder(files.own_folder(out, SCRATCH), "result")
    return scratch


def collect_records(out: Path, environment_digest: str) -> Iterator[RunRecord]:
    """Move the samples of a launch's finished runs to `out`; yield their records with the environment's digest."""
    result = out / SCRATCH / "result"
    if not (result / "runs.jsonl").exists():
        return
    for record in records.read(result):
        samples = result / "steps" / f"{record.run_id}.csv"
        if samples.exists():
            samples.replace(files.own_folder(out, "steps") / samples.name)
        yield record.model_copy(update={"environment": environment_digest})


def check_disk_space(out: Path, reason: str) -> None:
    """Raise DiskFull if a launch failed for lack of disk space: the failure is not the cell's."""
    if DiskFull.__name__ in reason:
        raise DiskFull(f"--out {out}: {reason}")
    files.write_whole(out / SCRATCH / "free", "\0" * MIN_FREE_BYTES)


def save_log(out: Path, run_id: str) -> str:
    """Write all logs of a launch that failed at this run to one file in `logs/`; return its path below `out`.

    Blank if nothing was launched.
    """
    name, launcher = f"logs/{run_id}.log", out / SCRATCH / "log"
    if not launcher.exists():
        return ""
    files.own_folder(out, "logs")
    said = failures.logs(out / SCRATCH)
    files.write_whole(out / name, failures.join_logs(launcher.read_text(errors="replace"), said.items()))
    return name
