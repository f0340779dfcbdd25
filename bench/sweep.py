"""A sweep: the plan, its launches, its progress and its resumption; the only writer of a results folder."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench import environment, launch, ledger, records
from bench.config import BadInput, RunConfig, Sweep
from bench.emulate import cluster, layout, sandbox
from bench.emulate.layout import Cluster
from bench.records import PlannedRun, RunRecord, Status

ORDER_SEED = 20
LAUNCH_GRACE_S = 30.0
OUT_OF_MEMORY_SIGNS = ("MemoryError", "out of memory", "can't allocate memory", "Cannot allocate memory")


def plan(sweep: Sweep, where: str) -> list[list[PlannedRun]]:
    """Return the launches, each a list of runs on the same ranks; repeats outermost.

    Cells of the same world share a launch, so that Python and MPI start once, while the launch stays the
    statistical sample. The order within and among launches is shuffled by a fixed seed, so that slow drift
    of the machine hits every strategy alike.
    """
    cells = sweep.runs(where)
    launches: list[list[PlannedRun]] = []
    for repeat in range(sweep.repeats):
        order = [cell for cell in cells if repeat == 0 or not cell.unsupported()]
        random.Random(ORDER_SEED + repeat).shuffle(order)
        worlds: dict[tuple[object, ...], list[PlannedRun]] = {}
        for cell in order:
            worlds.setdefault(_world(cell), []).append(PlannedRun(config=cell, repeat=repeat))
        launches += worlds.values()
    return launches


def _world(config: RunConfig) -> tuple[object, ...]:
    """What must be equal for two cells to run on the same ranks.

    Horovod cannot be initialised twice in a process (a second hvd.init() crashes), and its thread goes on
    talking between runs: ring cells share ranks with none but ring cells of the same knobs.
    """
    ring = config.strategy == "ring_allreduce" and (config.fusion_threshold_bytes, config.cycle_time_s)
    launcher = config.launcher if config.world_size > 1 else "none"
    network = (config.hostfile, config.network_interface, config.link, config.delay, config.congestion_control)
    return (launcher, config.world_size, config.num_servers if config.link else 0, *network, ring)


def emulated(config: RunConfig) -> Cluster | None:
    """The cluster that a config asks for, one node per rank; BadInput if there can be none like it."""
    if config.link is None:
        return None
    links = (config.link, config.num_servers, config.delay, config.congestion_control)
    return layout.make("sweep", config.world_size, *links)


def describe_plan(launches: list[list[PlannedRun]]) -> list[str]:
    """Return what `--dry-run` prints: each launch's runs, and the bytes one worker will send in a step."""
    lines = []
    for number, planned in enumerate(launches, start=1):
        config = planned[0].config
        where = f" on emulated nodes, {config.link}" if emulated(config) else ""
        lines.append(f"launch {number}: {config.world_size} ranks{where}")
        for run in planned:
            worker, _ = ledger.predict(run.config)
            reason = run.config.unsupported()
            note = (
                f"unsupported: {reason}"
                if reason
                else f"{(worker.bytes_sent or 0) / 1e6:.3g} MB sent per worker and step"
            )
            lines.append(f"  {run.run_id}  {run.describe()}: {note}")
    runs = [run for planned in launches for run in planned]
    cells = len({run.config.digest() for run in runs})
    return [*lines, f"{cells} cells, {len(runs)} runs, {len(launches)} launches"]


def run_sweep(sweep: Sweep, where: str, out: Path, console: Console) -> list[RunRecord]:
    """Run what is missing in `out` and return the records of this call, failures included."""
    launches = plan(sweep, where)
    for name in {run.config.launcher for planned in launches for run in planned if run.config.world_size > 1}:
        launch.find_launcher(name)  # found out before anything is written
    if [nodes for planned in launches if (nodes := emulated(planned[0].config))]:
        sandbox.enter()
    done: list[RunRecord] = []
    with _folder(out, sweep) as here, _progress(console) as progress:
        finished = {record.run_id for record in _existing(out) if record.status in ("ok", "unsupported")}
        todo = [[run for run in planned if run.run_id not in finished] for planned in launches]
        missing = sum(map(len, todo))
        console.print(f"{missing} runs to do, {len(finished)} done before")
        task = progress.add_task("sweep", total=missing, now="", last="")

        def announce(run: PlannedRun) -> None:
            progress.update(task, now=f"#{run.repeat} {run.describe()}")

        def keep(run: PlannedRun, record: RunRecord) -> None:
            records.append(out, record)
            done.append(record)
            progress.update(task, advance=1, last=escape(record.describe()))
            if not console.is_terminal:
                line = f"{len(done)}/{missing} #{run.repeat} {run.describe()}: {record.describe()}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        for planned in todo:
            _run_all(planned, out, here, announce, keep)
    return done


def _progress(console: Console) -> Progress:
    bar = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    text = (TextColumn("{task.fields[now]}"), TextColumn("[dim]{task.fields[last]}"))
    return Progress(*bar, *text, console=console, disable=not console.is_terminal)


def _run_all(
    planned: list[PlannedRun], out: Path, here: str,
    announce: Callable[[PlannedRun], None], keep: Callable[[PlannedRun, RunRecord], None],
) -> None:  # fmt: skip
    """Bring a record for each planned run: launch, and launch the rest again after one that failed."""
    pending = []
    for run in planned:
        reason = run.config.unsupported()
        if reason:
            keep(run, run.record("unsupported", here, reason=reason))
        else:
            pending.append(run)
    while pending:
        announce(pending[0])

        def arrived(run: PlannedRun, record: RunRecord) -> None:
            keep(run, record)
            pending.remove(run)
            if pending:
                announce(pending[0])

        status, reason = _launch(list(pending), out, here, arrived)
        if pending:  # the launch ended early: the run it was at is the one that failed
            culprit = pending.pop(0)
            keep(culprit, culprit.record(status, here, reason=reason))


def _launch(
    planned: list[PlannedRun], out: Path, here: str, arrived: Callable[[PlannedRun, RunRecord], None]
) -> tuple[Status, str]:
    """Start the ranks once for all planned runs, hand over each record as it comes, say how it ended."""
    scratch = out / ".running"
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "result").mkdir(parents=True)
    waiting = {run.run_id: run for run in planned}
    records.write_whole(scratch / "plan", "".join(run.model_dump_json() + "\n" for run in planned))
    progressed_at, bytes_seen = time.monotonic(), 0

    def look() -> float:
        """Take what has come; patience lasts a run's own deadline from the last arrival."""
        nonlocal progressed_at, bytes_seen
        written = records.size(scratch / "result")
        if written != bytes_seen:
            bytes_seen, progressed_at = written, time.monotonic()
            for record in harvest(scratch / "result", out, here):
                if record.run_id in waiting:
                    arrived(waiting.pop(record.run_id), record)
        patience = max((run.config.timeout_s for run in waiting.values()), default=0) + LAUNCH_GRACE_S
        return progressed_at + patience

    arguments = ["ranks", str(scratch / "plan"), "--out", str(scratch / "result")]
    nodes = emulated(planned[0].config)
    try:
        with cluster.running(nodes) if nodes else contextlib.nullcontext():
            argv = launch.command(planned[0].config, arguments, nodes)
            outcome = launch.run(argv, scratch / "log", look)
    except BadInput as error:
        return "failed", str(error)
    look()
    return diagnose(outcome)


def harvest(result: Path, out: Path, here: str) -> Iterator[RunRecord]:
    """Move the samples of finished runs to `out` and yield their records, stamped with its environment."""
    if not (result / "runs.jsonl").exists():
        return
    for record in records.read(result):
        samples = result / "steps" / f"{record.run_id}.csv"
        if samples.exists():
            (out / "steps").mkdir(exist_ok=True)
            samples.replace(out / "steps" / samples.name)
        yield record.model_copy(update={"environment": here})


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
        here = _enter(out, sweep)
        with _terminate_as_interrupt():
            yield here
    finally:
        shutil.rmtree(out / ".running", ignore_errors=True)
        lock.release()


def _enter(out: Path, sweep: Sweep) -> str:
    """Check that a folder's runs belong to this environment, rescue what a killed sweep left, describe it."""
    found = environment.collect()
    here = environment.digest(found)
    existing = _existing(out)
    others = {record.environment for record in existing} - {here}
    if others:
        raise BadInput(
            f"--out {out}: its runs come from another commit, host or library version "
            f"({', '.join(sorted(others))}, here {here}); choose a new folder"
        )
    known = {record.run_id for record in existing}
    for record in harvest(out / ".running" / "result", out, here):
        if record.run_id not in known:
            records.append(out, record)
    records.write_json(out / "environment.json", found)
    records.write_whole(out / "sweep.yaml", yaml.safe_dump(sweep.model_dump(), sort_keys=False))
    return here


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


def diagnose(outcome: launch.Outcome) -> tuple[Status, str]:
    """Name how a launch that ended early ended, and the line that says why."""
    lines = [line for line in outcome.tail.splitlines() if line.strip()]
    if outcome.timed_out or any("Timeout (" in line for line in lines):
        return "timeout", "the deadline passed (timeout_s)"
    said = [line for line in lines if "psring: " in line]
    reason = (said or lines or ["no output"])[-1].strip()
    if any(sign in line for line in lines for sign in OUT_OF_MEMORY_SIGNS):
        return "out_of_memory", reason
    return "failed", f"exit code {outcome.returncode}: {reason}"
