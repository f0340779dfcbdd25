"""Run a sweep: what is missing of its plan, launch by launch, and record every run."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from bench import durations, files, hosts, mpi, private, records, tokens
from bench.config import BadInput, RunConfig
from bench.inputs import BUILT_IN_DATA
from bench.nodes import cluster, sandbox
from bench.records import PlannedRun, RunRecord, Status
from bench.sweep import adapt, ends, estimate, folder, launch, probe, remaining, template, work
from bench.sweep.estimate import RunTimes
from bench.sweep.file import Sweep
from bench.sweep.folder import SCRATCH
from bench.sweep.journal import Journal
from bench.sweep.launch import Launch, Outcome
from bench.sweep.plan import emulated_cluster, missing, plan, plan_repeat, replacements, rounds
from bench.sweep.stopping import BudgetSpent, StopCondition, imprecise_cells

LAUNCH_GRACE_S = 30.0


def check_input(config: RunConfig) -> None:
    """Raise BadInput if a file that a run reads is missing or does not fit the run, or if its hosts do not exist."""
    hosts.check_hosts(config)
    if config.compute == "real" and config.data not in BUILT_IN_DATA:
        tokens.check_bin(Path(config.data))
    if config.compute == "emulated":
        durations.durations(config)


def check_inputs(sweep: Sweep, where: str) -> list[RunConfig]:
    """Return the cells of a sweep; BadInput if a file or a host that one of them needs is missing or does not fit."""
    cells = sweep.runs(where)
    for cell in cells:
        check_input(cell)
    return cells


def run_sweep(
    sweep: Sweep, where: str, out: Path, console: Console, launch_ranks: Launch | None = None
) -> list[RunRecord]:
    """Run what is missing in `out` and return the records of this call, failures included.

    `launch_ranks` starts the ranks of one launch, `start_ranks` if None.
    A cell that fails does not end the sweep. KeyboardInterrupt and DiskFull do, and leave a resumable folder.
    BadInput before anything is written if a launcher or an input file is missing.
    """
    stop = StopCondition(sweep.budget_s)
    sweep = adapt.adapted(folder.with_probes(sweep, out), where)
    launches = plan(sweep, where)
    for name in {run.config.launcher for planned in launches for run in planned if run.config.world_size > 1}:
        mpi.find_launcher(name)
    cells = check_inputs(sweep, where)
    no_nodes = _enter_sandbox(launches)
    with folder.locked(out, sweep, cells) as environment_digest:
        journal = Journal(out, console)
        session = _Session(out, environment_digest, no_nodes, journal, stop, launch_ranks or start_ranks)
        try:
            with stop.handling_signals(journal.print):
                session.run(sweep, where)
        finally:
            for line in template.errors():
                journal.print(line)
            journal.close()
            private.remove_abandoned(private.SHARED_MEMORY)  # of ranks that were killed
    return journal.done


@dataclass
class _Session:
    """One call of `psring sweep`, with the folder locked."""

    out: Path
    environment_digest: str
    no_nodes: str  # why there can be no emulated nodes, else ''
    journal: Journal
    stop: StopCondition
    launch_ranks: Launch
    times: RunTimes = field(init=False)
    has_begun: bool = False  # a run
    has_budget: bool = False
    stays_busy: bool = False  # so that rejected runs are not replaced any more

    def run(self, sweep: Sweep, where: str) -> None:
        """Run what is missing; at the end, and if interrupted, say what is left."""
        for line in adapt.describe(sweep):
            self.journal.print(line)
        sweep = probe.probed(sweep, where, self.out, self.launch_ranks, self.journal.print)
        launches, before = plan(sweep, where), folder.read_records(self.out)
        self.times = RunTimes(before, work.by_probe(sweep.probed))
        todo = missing(launches, before)
        self.journal.begin_sweep(sum(map(len, todo)), len(before))
        if todo:
            self.journal.print(f"estimate: {estimate.cost(todo, self.times).describe()}")
        self.has_budget = sweep.budget is not None
        interrupted = True
        try:
            with self.journal.progress:
                once = self._with_replacements(launches, before, sweep.max_replacements)
                spent = [planned for planned in once if not self._fits(planned)]
                repeats = _until_precise(sweep, where, before, self.journal)
                if spent or not all(map(self._fits, repeats)):
                    self.journal.print(f"the budget of {sweep.budget} is spent")
            interrupted = False
        finally:
            found = [*before, *self.journal.done]
            for line in remaining.describe(launches, found, sweep, interrupted=interrupted):
                self.journal.print(line)

    def _with_replacements(
        self, launches: Sequence[list[PlannedRun]], before: Sequence[RunRecord], max_per_cell: int
    ) -> Iterator[list[PlannedRun]]:
        """Yield the launches that are missing; after those of each repeat, the replacements of its rejected ones.

        With a budget after those of each stage: other pairs of launches come before better ones.
        """
        for planned in rounds(launches, whole_stages=self.has_budget):
            yield from missing(planned, before)
            again = replacements(planned, [*before, *self.journal.done], max_per_cell)
            yield from self._while_replacing_helps(again)

    def _while_replacing_helps(self, launches: Sequence[list[PlannedRun]]) -> Iterator[list[PlannedRun]]:
        """Yield replacements until all runs of one are rejected, too: the machine stays busy, and so for this call."""
        for planned in launches:
            if self.stays_busy:
                return
            self.journal.add_runs(len(planned))
            names = {run.run_id for run in planned}
            yield planned
            ended = [record for record in self.journal.done if record.run_id in names]
            self.stays_busy = bool(ended) and all(record.is_rejected for record in ended)
            if self.stays_busy:
                self.journal.print("a replacement was rejected, too: this machine is busy; nothing else is replaced")

    def _fits(self, planned: Sequence[PlannedRun]) -> bool:
        """Run all of a launch; return whether every run of it could be begun within the budget."""
        runnable = list(_supported(planned, self.no_nodes, self.environment_digest, self.journal))
        try:
            self._run_all(runnable)
        except BudgetSpent:
            return False
        return True

    def _run_all(self, pending: list[PlannedRun]) -> None:
        """Run and record all of one launch; after a run that fails, launch the ranks again for the remaining ones.

        BudgetSpent if a run is left that would end after the budget. A call's first run is begun in any case: else
        calling again would never get further.
        """
        while pending:
            first_s = self.times.start_up_s(pending[0].config.world_size) + self.times.seconds(pending[0].config)
            self.stop.check(first_s if self.has_begun else 0.0)
            self.has_begun = True
            batch = pending[:1]
            for run in pending[1:]:
                first_s += self.times.seconds(run.config)
                if not self.stop.allows(first_s):
                    break
                batch.append(run)
            folder.check_inputs(self.out, [run.config for run in pending])
            folder.new_scratch(self.out)
            self.journal.begin(batch[0])
            status, reason = self._launch(batch, pending)
            failed = next((run for run in batch if run in pending), None)
            if failed:  # the launch ended early: the first run without a record is the one that failed
                pending.remove(failed)
                folder.check_disk_space(self.out, reason)
                log = folder.save_log(self.out, failed.run_id)
                record = failed.record(status, self.environment_digest, reason=reason, log=log)
                self.journal.end(failed, record)

    def _launch(self, batch: Sequence[PlannedRun], pending: list[PlannedRun]) -> tuple[Status, str]:
        """Start the ranks once for a batch of runs; record each as soon as it ends, and take it out of `pending`.

        Return the status and the reason of a run that has no record when the ranks have ended. BudgetSpent once the
        next run of the batch would end after the budget.
        """
        scratch = self.out / SCRATCH
        left = {run.run_id: run for run in batch}
        files.write_whole(scratch / "plan", "".join(run.model_dump_json() + "\n" for run in batch))
        last_record_at, bytes_read = time.monotonic(), 0

        def poll() -> float:
            """Record what has ended; return the deadline: the longest timeout of a run that is left after that."""
            nonlocal last_record_at, bytes_read
            written = records.size(scratch / "result")
            if written != bytes_read:
                bytes_read, last_record_at = written, time.monotonic()
                for record in folder.collect_records(self.out, self.environment_digest):
                    run = left.pop(record.run_id, None)
                    if run:
                        pending.remove(run)
                        self.times.add(self.journal.end(run, record))
                if left:
                    following = next(iter(left.values()))
                    self.stop.check(self.times.seconds(following.config))
                    self.journal.begin(following)
            timeout_s = max((run.config.timeout_s for run in left.values()), default=0)
            return last_record_at + timeout_s + LAUNCH_GRACE_S

        try:
            outcome = self.launch_ranks(batch, scratch, poll)
        except BadInput as error:
            return "failed", str(error)
        poll()
        return ends.diagnose(outcome, next(iter(left.values()), batch[-1]).config, scratch)


def _until_precise(
    sweep: Sweep, where: str, before: Sequence[RunRecord], journal: Journal
) -> Iterator[list[PlannedRun]]:
    """Yield further repeats of the cells whose interval is wider than `precision_target`.

    A cell that failed in this call gets none: it would only fail again. Nor does one of which more launches were
    rejected than may be replaced.
    """
    planned = sweep.cells(where)
    cells, repeat = [cell.config for cell in planned], max(cell.repeats for cell in planned)
    while sweep.precision_target is not None:
        failed = {record.cell for record in journal.done if record.status != "ok" and not record.is_rejected}
        rejected = Counter(record.cell for record in journal.done if record.is_rejected)
        failed |= {cell for cell, count in rejected.items() if count > sweep.max_replacements}
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


def start_ranks(planned: Sequence[PlannedRun], scratch: Path, poll: Callable[[], float]) -> Outcome:
    """Start the ranks of one launch, on emulated nodes if it needs them, and wait for their end or deadline.

    BadInput if there can be no such nodes.
    """
    config = launch.with_own_hostfile(planned[0].config, scratch / "hosts")
    nodes = emulated_cluster(config)
    environ = launch.environment(config, nodes)
    arguments = ["ranks", str(scratch / "plan"), "--out", str(scratch / "result")]
    with cluster.running(nodes, environ) if nodes else contextlib.nullcontext():
        return launch.run(launch.command(config, arguments, nodes), environ, scratch / "log", poll)
