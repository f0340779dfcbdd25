"""Run a sweep: plan the launches and their order, run what is missing, record every run."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from bench import durations, files, ledger, mpi, records, tokens
from bench.config import BadInput, RunConfig
from bench.nodes import cluster, layout, sandbox
from bench.nodes.layout import Cluster
from bench.records import PlannedRun, RunRecord, Status
from bench.sweep import ends, estimate, folder, launch, template
from bench.sweep.file import Sweep
from bench.sweep.folder import SCRATCH
from bench.sweep.journal import Journal
from bench.sweep.launch import Outcome
from bench.sweep.stopping import BudgetSpent, StopCondition, imprecise_cells

ORDER_SEED = 20
LAUNCH_GRACE_S = 30.0


def plan(sweep: Sweep, where: str) -> list[list[PlannedRun]]:
    """Return the launches, each a list of runs on the same ranks; repeats outermost.

    Cells that can run on the same ranks share a launch, so that Python and MPI start once; the launch is the
    statistical sample. The order of cells is shuffled with a fixed seed, so that slow drift of the machine affects
    every strategy alike.
    """
    cells = sweep.runs(where)
    return [planned for repeat in range(sweep.repeats) for planned in plan_repeat(cells, repeat)]


def plan_repeat(cells: Sequence[RunConfig], repeat: int) -> list[list[PlannedRun]]:
    """Return the launches of one repeat of all cells; cells that no library supports are in the first repeat only."""
    order = [cell for cell in cells if repeat == 0 or not cell.unsupported()]
    random.Random(ORDER_SEED + repeat).shuffle(order)
    launches: dict[tuple[object, ...], list[PlannedRun]] = {}
    for cell in order:
        launches.setdefault(_launch_key(cell), []).append(PlannedRun(config=cell, repeat=repeat))
    return list(launches.values())


def _launch_key(config: RunConfig) -> tuple[object, ...]:
    """Return the values that must be equal for two cells to run on the same ranks.

    Horovod cannot be initialised twice in a process (a second hvd.init() crashes), and its thread communicates between
    runs, too: cells of a library that reads knobs once in a process share ranks only with each other, at equal knobs.
    """
    once = config.kind.process_knobs
    library = once and (config.strategy, *(getattr(config, name) for name in once))
    launcher = config.launcher if config.world_size > 1 else "none"
    transport = (config.hostfile, config.network_interface, config.socket_bytes, config.eager_limit_bytes)
    return (launcher, config.world_size, *transport, emulated_cluster(config), library)


def emulated_cluster(config: RunConfig) -> Cluster | None:
    """Return the emulated cluster of a config, one node per rank, None if it has none; BadInput for a bad value."""
    if config.link is None:
        return None
    num_servers = (
        config.num_servers if "server" in config.link else 0
    )  # 0: cells with any number of servers share the nodes
    return layout.make("sweep", config.world_size, config.link, num_servers, config.delay, config.congestion_control)


def describe_plan(launches: list[list[PlannedRun]], found: Sequence[RunRecord] = ()) -> list[str]:
    """Return what `--dry-run` prints: each launch's runs, the bytes one worker will send in a step, and the cost."""
    lines = []
    for number, planned in enumerate(launches, start=1):
        config = planned[0].config
        where = f" on emulated nodes, {config.link}" if emulated_cluster(config) else ""
        lines.append(f"launch {number}: {config.world_size} ranks{where}")
        for run in planned:
            worker = ledger.predict(run.config).worker
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
    """Return the launches' runs that have no record or failed."""
    ended = {record.run_id: record.status for record in found}

    def finished(run: PlannedRun) -> bool:
        """Emulated nodes may have become possible since; what no library supports stays unsupported."""
        status = ended.get(run.run_id)
        return status == "ok" or (status == "unsupported" and run.config.unsupported() is not None)

    remaining = [[run for run in planned if not finished(run)] for planned in launches]
    return [planned for planned in remaining if planned]


def check_input_files(config: RunConfig) -> None:
    """Raise BadInput if a file that a run reads is missing or does not fit the run."""
    if config.compute == "real" and config.data not in ("stdlib", "synthetic"):
        tokens.check_bin(Path(config.data))
    if config.compute == "emulated":
        durations.durations(config)


# Starts the ranks of one launch and waits for their end: (runs, scratch folder with the file `plan` and the folder
# `result`, poll) -> outcome. It calls `poll` several times a second; that returns the deadline, time.monotonic().
Launch = Callable[[Sequence[PlannedRun], Path, Callable[[], float]], Outcome]


def run_sweep(
    sweep: Sweep, where: str, out: Path, console: Console, launch_ranks: Launch | None = None
) -> list[RunRecord]:
    """Run what is missing in `out` and return the records of this call, failures included.

    `launch_ranks` starts the ranks of one launch, `start_ranks` if None.
    A cell that fails does not end the sweep. KeyboardInterrupt and DiskFull do, and leave a resumable folder.
    BadInput before anything is written if a launcher or an input file is missing.
    """
    launches = plan(sweep, where)
    for name in {run.config.launcher for planned in launches for run in planned if run.config.world_size > 1}:
        mpi.find_launcher(name)
    for cell in sweep.runs(where):
        check_input_files(cell)
    no_nodes = _enter_sandbox(launches)
    stop = StopCondition(sweep.budget_s)
    with folder.locked(out, sweep) as environment_digest:
        before = folder.read_records(out)
        todo = missing(launches, before)
        journal = Journal(out, console, sum(map(len, todo)))
        journal.print(f"{sum(map(len, todo))} runs to do, {len(before)} records before")
        if todo:
            journal.print(f"estimate: {estimate.cost(todo, before).describe()}")
        try:
            with stop.handling_signals(journal.print), journal.progress:
                for planned in itertools.chain(todo, _until_precise(sweep, where, before, journal)):
                    runnable = list(_supported(planned, no_nodes, environment_digest, journal))
                    _run_all(runnable, out, environment_digest, journal, stop, launch_ranks or start_ranks)
        except BudgetSpent:
            journal.print(f"the budget of {sweep.budget} is spent; the same command runs what is missing")
        finally:
            for line in template.complaints():
                journal.print(line)
            journal.close()
    return journal.done


def _until_precise(
    sweep: Sweep, where: str, before: Sequence[RunRecord], journal: Journal
) -> Iterator[list[PlannedRun]]:
    """Yield further repeats of the cells whose interval is wider than `precision_target`.

    A cell that failed in this call gets none: it would only fail again.
    """
    cells = sweep.runs(where)
    repeat = sweep.repeats
    while sweep.precision_target is not None:
        failed = {record.cell for record in journal.done if record.status != "ok"}
        wide = imprecise_cells([*before, *journal.done], sweep.precision_target) - failed
        remaining = [cell for cell in cells if cell.digest() in wide]
        if not remaining:
            return
        launches = missing(plan_repeat(remaining, repeat), before)
        journal.add_runs(sum(map(len, launches)))
        yield from launches
        repeat += 1


def _enter_sandbox(launches: Sequence[list[PlannedRun]]) -> str:
    """Enter private namespaces if any launch needs emulated nodes; return why that is impossible, else ''.

    BadInput if it is impossible and every launch needs them.
    """
    needed = [emulated_cluster(planned[0].config) is not None for planned in launches]
    try:
        if any(needed):
            sandbox.enter()
    except BadInput as error:
        if all(needed):
            raise
        return str(error)
    return ""


def _supported(
    planned: Sequence[PlannedRun], no_nodes: str, environment_digest: str, journal: Journal
) -> Iterator[PlannedRun]:
    """Yield the runs that this machine supports; record the others as unsupported, with a reason."""
    for run in planned:
        reason = run.config.unsupported() or (no_nodes if run.config.link else None)
        if reason:
            journal.end(run, run.record("unsupported", environment_digest, reason=reason))
        else:
            yield run


def _run_all(
    pending: list[PlannedRun], out: Path, environment_digest: str, journal: Journal, stop: StopCondition,
    launch_ranks: Launch,
) -> None:  # fmt: skip
    """Run and record all of one launch; after a run that fails, launch the ranks again for the remaining ones."""
    while pending:
        stop.check()

        def on_record(run: PlannedRun, record: RunRecord) -> None:
            journal.end(run, record)
            pending.remove(run)
            if pending:
                stop.check()
                journal.begin(pending[0])

        folder.new_scratch(out)
        journal.begin(pending[0])
        status, reason = _launch(list(pending), out, environment_digest, on_record, launch_ranks)
        if pending:  # the launch ended early: the first run without a record is the one that failed
            failed = pending.pop(0)
            folder.check_disk_space(out, reason)
            log = folder.save_log(out, failed.run_id)
            journal.end(failed, failed.record(status, environment_digest, reason=reason, log=log))


def _launch(
    planned: list[PlannedRun], out: Path, environment_digest: str, on_record: Callable[[PlannedRun, RunRecord], None],
    launch_ranks: Launch,
) -> tuple[Status, str]:  # fmt: skip
    """Start the ranks once for all planned runs; pass each record to `on_record` as soon as it is written.

    Return the status and the reason of a run that has no record when the ranks have ended.
    """
    scratch = out / SCRATCH
    remaining = {run.run_id: run for run in planned}
    files.write_whole(scratch / "plan", "".join(run.model_dump_json() + "\n" for run in planned))
    last_record_at, bytes_read = time.monotonic(), 0

    def poll() -> float:
        """Pass on new records; return the deadline: the longest timeout of a remaining run after the last record."""
        nonlocal last_record_at, bytes_read
        written = records.size(scratch / "result")
        if written != bytes_read:
            bytes_read, last_record_at = written, time.monotonic()
            for record in folder.collect_records(out, environment_digest):
                if record.run_id in remaining:
                    on_record(remaining.pop(record.run_id), record)
        timeout_s = max((run.config.timeout_s for run in remaining.values()), default=0)
        return last_record_at + timeout_s + LAUNCH_GRACE_S

    try:
        outcome = launch_ranks(planned, scratch, poll)
    except BadInput as error:
        return "failed", str(error)
    poll()
    return ends.diagnose(outcome, next(iter(remaining.values()), planned[-1]).config, scratch)


def start_ranks(planned: Sequence[PlannedRun], scratch: Path, poll: Callable[[], float]) -> Outcome:
    """Start the ranks of one launch, on emulated nodes if it needs them, and wait for their end or deadline.

    BadInput if there can be no such nodes.
    """
    config = planned[0].config
    nodes = emulated_cluster(config)
    environ = launch.environment(config, nodes)  # starts a template, which gets ready while nodes are made
    arguments = ["ranks", str(scratch / "plan"), "--out", str(scratch / "result")]
    with cluster.running(nodes) if nodes else contextlib.nullcontext():
        return launch.run(launch.command(config, arguments, nodes), environ, scratch / "log", poll)
