"""A sweep: the plan, its launches and their order; what is missing is run, and every run becomes a row."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from bench import ledger, mpi, records
from bench.config import BadInput, RunConfig
from bench.nodes import cluster, layout, sandbox
from bench.nodes.layout import Cluster
from bench.records import PlannedRun, RunRecord, Status
from bench.sweep import ends, estimate, folder, launch
from bench.sweep.file import Sweep
from bench.sweep.folder import SCRATCH
from bench.sweep.journal import Journal
from bench.sweep.stopping import BudgetSpent, Stop, imprecise

ORDER_SEED = 20
LAUNCH_GRACE_S = 30.0


def plan(sweep: Sweep, where: str) -> list[list[PlannedRun]]:
    """Return the launches, each a list of runs on the same ranks; repeats outermost.

    Cells of the same world share a launch, so that Python and MPI start once, while the launch stays the
    statistical sample. The order within and among launches is shuffled by a fixed seed, so that slow drift
    of the machine hits every strategy alike.
    """
    cells = sweep.runs(where)
    return [planned for repeat in range(sweep.repeats) for planned in plan_repeat(cells, repeat)]


def plan_repeat(cells: Sequence[RunConfig], repeat: int) -> list[list[PlannedRun]]:
    """Return the launches of one repeat of all cells; what no library can run has only its first."""
    order = [cell for cell in cells if repeat == 0 or not cell.unsupported()]
    random.Random(ORDER_SEED + repeat).shuffle(order)
    worlds: dict[tuple[object, ...], list[PlannedRun]] = {}
    for cell in order:
        worlds.setdefault(_world(cell), []).append(PlannedRun(config=cell, repeat=repeat))
    return list(worlds.values())


def _world(config: RunConfig) -> tuple[object, ...]:
    """What must be equal for two cells to run on the same ranks.

    Horovod cannot be initialised twice in a process (a second hvd.init() crashes), and its thread goes on
    talking between runs: ring cells share ranks with none but ring cells of the same knobs.
    """
    ring = config.strategy == "ring_allreduce" and (config.fusion_threshold_bytes, config.cycle_time_s)
    launcher = config.launcher if config.world_size > 1 else "none"
    over = (config.hostfile, config.network_interface, config.socket_bytes, config.eager_limit_bytes)
    return (launcher, config.world_size, *over, emulated(config), ring)


def emulated(config: RunConfig) -> Cluster | None:
    """The cluster that a config asks for, one node per rank; BadInput if there can be none like it."""
    if config.link is None:
        return None
    num_servers = config.num_servers if "server" in config.link else 0  # else cells of any roles share nodes
    return layout.make("sweep", config.world_size, config.link, num_servers, config.delay, config.congestion_control)


def describe_plan(launches: list[list[PlannedRun]], found: Sequence[RunRecord] = ()) -> list[str]:
    """Return what `--dry-run` prints: each launch's runs, the bytes one worker will send in a step, and the cost."""
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
    lines.append(f"{cells} cells, {len(runs)} runs, {len(launches)} launches")
    todo = missing(launches, found)
    if found:
        lines.append(f"{sum(map(len, todo))} runs are missing in the folder")
    return [*lines, f"estimate: {estimate.cost(todo, found).describe()}"]


def missing(launches: Sequence[list[PlannedRun]], found: Sequence[RunRecord]) -> list[list[PlannedRun]]:
    """Return what is left of the launches: runs without a record, and those that came to nothing."""
    ended = {record.run_id: record.status for record in found}

    def finished(run: PlannedRun) -> bool:
        """What could not be emulated here may have become possible; what no library can run has not."""
        status = ended.get(run.run_id)
        return status == "ok" or (status == "unsupported" and run.config.unsupported() is not None)

    left = [[run for run in planned if not finished(run)] for planned in launches]
    return [planned for planned in left if planned]


def run_sweep(sweep: Sweep, where: str, out: Path, console: Console) -> list[RunRecord]:
    """Run what is missing in `out` and return the records of this call, failures included.

    One bad cell never ends a sweep. KeyboardInterrupt and DiskFull do, and leave a folder that resumes.
    """
    launches = plan(sweep, where)
    for name in {run.config.launcher for planned in launches for run in planned if run.config.world_size > 1}:
        mpi.find_launcher(name)  # found out before anything is written
    no_nodes = _enter_sandbox(launches)
    stop = Stop(sweep.budget_s)
    with folder.opened(out, sweep) as here:
        before = folder.existing(out)
        todo = missing(launches, before)
        book = Journal(out, console, sum(map(len, todo)))
        book.say(f"{sum(map(len, todo))} runs to do, {len(before)} records before")
        if todo:
            book.say(f"estimate: {estimate.cost(todo, before).describe()}")
        try:
            with stop.on_signals(book.say), book.progress:
                for planned in itertools.chain(todo, _until_precise(sweep, where, before, book)):
                    runnable = list(_refuse(planned, no_nodes, here, book))
                    _run_all(runnable, out, here, book, stop)
        except BudgetSpent:
            book.say(f"the budget of {sweep.budget} is spent; the same command goes on from here")
        finally:
            book.close()
    return book.done


def _until_precise(sweep: Sweep, where: str, before: Sequence[RunRecord], book: Journal) -> Iterator[list[PlannedRun]]:
    """Yield launches beyond the least repeats, as long as there are cells whose interval is too wide.

    A cell that failed in this call is given up: one more launch of it would not narrow anything.
    """
    cells = sweep.runs(where)
    repeat = sweep.repeats
    while sweep.precision_target is not None:
        failed = {record.cell for record in book.done if record.status != "ok"}
        wide = imprecise([*before, *book.done], sweep.precision_target) - failed
        wanted = [cell for cell in cells if cell.digest() in wide]
        if not wanted:
            return
        launches = missing(plan_repeat(wanted, repeat), before)
        book.expect(sum(map(len, launches)))
        yield from launches
        repeat += 1


def _enter_sandbox(launches: Sequence[list[PlannedRun]]) -> str:
    """Go where emulated nodes can be made, if any are planned; return why there can be none, or nothing.

    BadInput if nothing else is planned, or a cluster is described wrongly.
    """
    wanted = [emulated(planned[0].config) is not None for planned in launches]
    try:
        if any(wanted):
            sandbox.enter()
    except BadInput as error:
        if all(wanted):
            raise
        return str(error)
    return ""


def _refuse(planned: Sequence[PlannedRun], no_nodes: str, here: str, book: Journal) -> Iterator[PlannedRun]:
    """Yield the runs that can run; the others become rows with a reason."""
    for run in planned:
        reason = run.config.unsupported() or (no_nodes if run.config.link else None)
        if reason:
            book.keep(run, run.record("unsupported", here, reason=reason))
        else:
            yield run


def _run_all(pending: list[PlannedRun], out: Path, here: str, book: Journal, stop: Stop) -> None:
    """Bring a record for each run: launch, and launch the rest again after one that failed."""
    while pending:
        stop.check()

        def arrived(run: PlannedRun, record: RunRecord) -> None:
            book.keep(run, record)
            pending.remove(run)
            if pending:
                stop.check()
                book.announce(pending[0])

        folder.new_scratch(out)
        book.announce(pending[0])
        status, reason = _launch(list(pending), out, here, arrived)
        if pending:  # the launch ended early: the run it was at is the one that failed
            culprit = pending.pop(0)
            folder.check_room(out, reason)
            log = folder.keep_log(out, culprit.run_id)
            book.keep(culprit, culprit.record(status, here, reason=reason, log=log))


def _launch(
    planned: list[PlannedRun], out: Path, here: str, arrived: Callable[[PlannedRun, RunRecord], None]
) -> tuple[Status, str]:
    """Start the ranks once for all planned runs, hand over each record as it comes, say how it ended."""
    scratch = out / SCRATCH
    waiting = {run.run_id: run for run in planned}
    records.write_whole(scratch / "plan", "".join(run.model_dump_json() + "\n" for run in planned))
    progressed_at, bytes_seen = time.monotonic(), 0

    def look() -> float:
        """Take what has come; patience lasts a run's own deadline from the last arrival."""
        nonlocal progressed_at, bytes_seen
        written = records.size(scratch / "result")
        if written != bytes_seen:
            bytes_seen, progressed_at = written, time.monotonic()
            for record in folder.harvest(out, here):
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
    return ends.diagnose(outcome, next(iter(waiting.values()), planned[-1]).config)
