"""A sweep's results folder: opened by one sweep at a time, resumed only where it was measured, rescued after a kill."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from bench import environment, records
from bench.config import BadInput, DiskFull
from bench.records import RunRecord
from bench.sweep.file import Sweep

SCRATCH = ".running"  # of the launch that is running: its plan, its log, and what its ranks have written
ROOM_BYTES = 1 << 18  # less than this is a full disk: a launch could not leave its log and its samples


@contextlib.contextmanager
def opened(out: Path, sweep: Sweep) -> Iterator[str]:
    """Make or reopen a results folder, alone; yield the digest of this environment.

    What ranks have written stays for the next sweep to take if this one ends in an exception.
    BadInput if it cannot be written, holds something else, is in use, or was measured somewhere else.
    """
    records.open_folder(out, resumable=True)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BadInput(f"--out {out}: another sweep is writing there; wait for it or choose another folder") from None
    try:
        yield _enter(out, sweep)
        shutil.rmtree(out / SCRATCH, ignore_errors=True)
    finally:
        lock.release()


def _enter(out: Path, sweep: Sweep) -> str:
    """Check that a folder's runs belong to this environment, rescue what a killed sweep left, describe it."""
    found = environment.collect()
    here = environment.digest(found)
    known = existing(out)
    others = {record.environment for record in known} - {here}
    if others:
        raise BadInput(
            f"--out {out}: its runs come from another commit, host or library version "
            f"({', '.join(sorted(others))}, here {here}); choose a new folder"
        )
    names = {record.run_id for record in known}
    for record in harvest(out, here):
        if record.run_id not in names:
            records.append(out, record)
    records.write_json(out / "environment.json", found)
    records.write_whole(out / "sweep.yaml", yaml.safe_dump(sweep.model_dump(exclude_none=True), sort_keys=False))
    return here


def existing(out: Path) -> list[RunRecord]:
    """What a folder holds, the last word on each run; nothing if nothing ran yet."""
    return records.read(out) if (out / "runs.jsonl").exists() else []


def new_scratch(out: Path) -> Path:
    """Return an empty place for a launch, and in it `result` for what its ranks write."""
    scratch = out / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    with records.disk_full_is_said(scratch):
        (scratch / "result").mkdir(parents=True)
    return scratch


def harvest(out: Path, here: str) -> Iterator[RunRecord]:
    """Move the samples of a launch's finished runs to `out` and yield their records, stamped with its environment."""
    result = out / SCRATCH / "result"
    if not (result / "runs.jsonl").exists():
        return
    for record in records.read(result):
        samples = result / "steps" / f"{record.run_id}.csv"
        if samples.exists():
            (out / "steps").mkdir(exist_ok=True)
            samples.replace(out / "steps" / samples.name)
        yield record.model_copy(update={"environment": here})


def check_room(out: Path, reason: str) -> None:
    """DiskFull if a launch came to nothing because nothing more could be written: no cell is to blame for that."""
    if DiskFull.__name__ in reason:
        raise DiskFull(f"--out {out}: {reason}")
    records.write_whole(out / SCRATCH / "room", "\0" * ROOM_BYTES)


def keep_log(out: Path, run_id: str) -> str:
    """Keep what the launch printed that came to nothing with this run; return where below `out`, blank if nothing."""
    name = f"logs/{run_id}.log"
    if not (out / SCRATCH / "log").exists():
        return ""
    (out / "logs").mkdir(exist_ok=True)
    (out / SCRATCH / "log").replace(out / name)
    return name
