"""A sweep: the plan, its order, its progress and its resumption; the only writer of a results folder."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench import environment, ledger, records
from bench.config import BadInput, RunConfig, Sweep
from bench.launch import Outcome, command, run
from bench.records import RunRecord, Status

ORDER_SEED = 20
LAUNCH_GRACE_S = 30.0
OUT_OF_MEMORY_SIGNS = ("MemoryError", "out of memory", "can't allocate memory", "Cannot allocate memory")


@dataclass(frozen=True)
class Launch:
    """One cell's n-th launch."""

    config: RunConfig
    repeat: int

    @property
    def run_id(self) -> str:
        """The name of its record."""
        return records.run_id(self.config, self.repeat)

    def describe(self) -> str:
        """The cell in a few words."""
        c = self.config
        servers = f"+{c.num_servers}" if c.num_servers else ""
        return f"{c.strategy} {c.num_workers}{servers} {c.precision}/{c.wire_dtype} batch {c.batch_size} #{self.repeat}"


def plan(sweep: Sweep, where: str) -> list[Launch]:
    """Return all launches: repeats outermost, the cells of each in an order shuffled by a fixed seed.

    Slow drift of the machine then hits every strategy alike.
    """
    cells = sweep.runs(where)
    launches = []
    for repeat in range(sweep.repeats):
        order = [cell for cell in cells if repeat == 0 or not cell.unsupported()]
        random.Random(ORDER_SEED + repeat).shuffle(order)
        launches += [Launch(cell, repeat) for cell in order]
    return launches


def describe_plan(launches: list[Launch]) -> list[str]:
    """Return what `--dry-run` prints: each launch, and the bytes that one worker will send in a step."""
    lines = []
    for launch in launches:
        worker, _ = ledger.predict(launch.config)
        reason = launch.config.unsupported()
        note = f"unsupported: {reason}" if reason else f"{worker.bytes_sent / 1e6:.3g} MB sent per worker and step"
        lines.append(f"{launch.run_id}  {launch.describe():58} {note}")
    cells = len({launch.config.digest() for launch in launches})
    return [*lines, f"{cells} cells, {len(launches)} launches"]


def run_sweep(sweep: Sweep, where: str, out: Path, console: Console) -> list[RunRecord]:
    """Run what is missing in `out` and return the records of this call, failures included."""
    launches = plan(sweep, where)
    with _folder(out, sweep) as here:
        finished = {r.run_id for r in _existing(out) if r.status in ("ok", "unsupported")}
        missing = [launch for launch in launches if launch.run_id not in finished]
        if len(missing) < len(launches):
            console.print(f"{len(launches) - len(missing)} of {len(launches)} launches are already in {out}")
        done = []
        with _progress(console) as progress:
            task = progress.add_task("sweep", total=len(missing), cell="", last="")
            for launch in missing:
                progress.update(task, cell=launch.describe())
                record = _measure(launch, out, here)
                records.append(out, record)
                done.append(record)
                progress.update(task, advance=1, last=_outcome_text(record))
                if not console.is_terminal:
                    console.print(f"{len(done)}/{len(missing)} {launch.describe()}: {_outcome_text(record)}")
        return done


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[cell]}"),
        TextColumn("[dim]{task.fields[last]}"), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip


def _outcome_text(record: RunRecord) -> str:
    if record.summary is None:
        return f"{record.status}: {record.reason}"
    return f"{record.summary.tokens_per_s:,.0f} tokens/s, loss {record.summary.final_loss:.3f}"


@contextlib.contextmanager
def _folder(out: Path, sweep: Sweep) -> Iterator[str]:
    """Make or reopen a results folder, alone; yield the digest of this environment.

    BadInput if it cannot be written, holds something else, is in use, or was measured somewhere else.
    """
    records.open_folder(out, resumable=True)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BadInput(f"--out {out}: another sweep is writing there; wait for it or choose another folder") from None
    try:
        found = environment.collect()
        here = environment.digest(found)
        before = {record.environment for record in _existing(out)}
        if before - {here}:
            raise BadInput(
                f"--out {out}: its runs come from another commit, host or library version "
                f"({', '.join(sorted(before))}, here {here}); choose a new folder"
            )
        records.write_json(out / "environment.json", found)
        content = yaml.safe_dump(sweep.model_dump(), sort_keys=False)
        records.write_whole(out / "sweep.yaml", content)
        with _terminate_as_interrupt():
            yield here
    finally:
        shutil.rmtree(out / ".running", ignore_errors=True)
        lock.release()


def _existing(out: Path) -> list[RunRecord]:
    return records.read(out) if (out / "runs.jsonl").exists() else []


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a sweep as Ctrl-C does: ranks ended, folder good."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _measure(launch: Launch, out: Path, here: str) -> RunRecord:
    """Run one launch in a folder of its own and bring its record and its samples home."""
    config = launch.config
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    reason = config.unsupported()
    if reason:
        return records.failure(config, launch.repeat, here, started_at, "unsupported", reason)
    scratch = out / ".running"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    result = scratch / "result"
    # The gate stands before a cell's first timing; the other launches train the same thing.
    gated = config if launch.repeat == 0 else config.model_copy(update={"check_equivalence": False})
    try:
        argv = command(gated, result)
    except BadInput as error:
        return records.failure(config, launch.repeat, here, started_at, "failed", str(error))
    outcome = run(argv, scratch / "log", config.timeout_s + LAUNCH_GRACE_S)
    if not (result / "runs.jsonl").exists():
        status, reason = diagnose(outcome)
        return records.failure(config, launch.repeat, here, started_at, status, reason)
    (record,) = records.read(result)
    (out / "steps").mkdir(exist_ok=True)
    (result / "steps" / f"{record.run_id}.csv").replace(out / "steps" / f"{launch.run_id}.csv")
    own = {"run_id": launch.run_id, "cell": config.digest(), "config": config}
    return record.model_copy(update={**own, "repeat": launch.repeat, "environment": here})


def diagnose(outcome: Outcome) -> tuple[Status, str]:
    """Name how a run without a record ended, and the line that says why."""
    lines = [line for line in outcome.tail.splitlines() if line.strip()]
    if outcome.timed_out or any("Timeout (" in line for line in lines):
        return "timeout", "the deadline passed (timeout_s)"
    said = [line for line in lines if "psring: " in line]
    reason = (said or lines or ["no output"])[-1].strip()
    if any(sign in line for line in lines for sign in OUT_OF_MEMORY_SIGNS):
        return "out_of_memory", reason
    return "failed", f"exit code {outcome.returncode}: {reason}"
