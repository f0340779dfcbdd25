"""The plan of a sweep: its launches and their order, which of them are missing, and what `--dry-run` prints."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from bench import ledger
from bench.config import RunConfig
from bench.nodes import layout
from bench.nodes.layout import Cluster
from bench.records import PlannedRun, RunRecord
from bench.sweep import estimate, work
from bench.sweep.estimate import RunTimes
from bench.sweep.file import Sweep

ORDER_SEED = 20


def plan(sweep: Sweep, where: str) -> list[list[PlannedRun]]:
    """Return the launches, each a list of runs on the same ranks: stage by stage, in each repeat by repeat.

    Cells that can run on the same ranks share a launch, so that Python and MPI start once; the launch is the
    statistical sample. The order of cells is shuffled with a fixed seed, so that slow drift of the machine affects
    every strategy alike.
    """
    launches: list[list[PlannedRun]] = []
    for cells in sweep.stages(where):
        for repeat in range(max(cell.repeats for cell in cells)):
            launches += plan_repeat([cell.config for cell in cells if repeat < cell.repeats], repeat)
    return launches


def rounds(launches: Sequence[list[PlannedRun]], *, whole_stages: bool) -> list[list[list[PlannedRun]]]:
    """Return the launches of a plan repeat by repeat, or stage by stage: a stage begins where repeats begin anew."""
    found: list[list[list[PlannedRun]]] = []
    previous = -1
    for planned in launches:
        repeat = planned[0].repeat
        if not found or repeat < previous or (repeat > previous and not whole_stages):
            found.append([])
        found[-1].append(planned)
        previous = repeat
    return found


def plan_repeat(cells: Sequence[RunConfig], repeat: int) -> list[list[PlannedRun]]:
    """Return the launches of one repeat of all cells; cells that no library supports are in the first repeat only."""
    order = [cell for cell in cells if repeat == 0 or not cell.unsupported()]
    random.Random(ORDER_SEED + repeat).shuffle(order)
    alike: dict[tuple[object, ...], list[RunConfig]] = {}
    for cell in order:
        alike.setdefault(_ranks(cell), []).append(cell)
    launches = [launch for group in alike.values() for launch in _split_by_library(group)]
    return [[PlannedRun(config=cell, repeat=repeat) for cell in launch] for launch in launches]


def _split_by_library(cells: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Return the launches of cells that can run on the same ranks, but for a library that can start only once.

    Horovod cannot be initialised twice in a process (a second hvd.init() crashes), and then its thread communicates
    between runs, too: its cells share ranks at equal knobs, behind the cells that do not need it.
    """
    by_library: dict[tuple[object, ...], list[RunConfig]] = {}
    for cell in cells:
        by_library.setdefault(_library(cell), []).append(cell)
    others = by_library.pop((), [])
    first, *more = by_library.values() if by_library else [[]]
    return [[*others, *first], *more]


def _library(config: RunConfig) -> tuple[object, ...]:
    """Return the strategy and the knobs that its library reads once in a process; () if there are none."""
    once = config.kind.process_knobs
    return (config.strategy, *(getattr(config, name) for name in once)) if once else ()


def _ranks(config: RunConfig) -> tuple[object, ...]:
    """Return the values that must be equal for two cells to run on the same ranks."""
    launcher = config.launcher if config.world_size > 1 else "none"
    transport = (config.hostfile, config.network_interface, config.socket_bytes, config.eager_limit_bytes)
    return (launcher, config.world_size, *transport, emulated_cluster(config))


def emulated_cluster(config: RunConfig) -> Cluster | None:
    """Return the emulated cluster of a config, one node per rank, None if it has none; BadInput for a bad value."""
    if config.link is None:
        return None
    num_servers = (
        config.num_servers if "server" in config.link else 0
    )  # 0: cells with any number of servers share the nodes
    return layout.make("sweep", config.world_size, config.link, num_servers, config.delay, config.congestion_control)


def describe_plan(launches: list[list[PlannedRun]], found: Sequence[RunRecord], sweep: Sweep) -> list[str]:
    """Return what `--dry-run` prints: the plan's size and cost, then each launch's runs and what they will send."""
    runs = [run for planned in launches for run in planned]
    cells = len({run.config.digest() for run in runs})
    todo = missing(launches, found)
    lines = [f"{cells} cells, {len(runs)} runs, {len(launches)} launches"]
    if found:
        lines.append(f"{sum(map(len, todo))} runs are missing in the folder")
    probed = work.by_probe(sweep.probed)
    lines.append(f"estimate: {estimate.cost(todo, RunTimes(found, probed)).describe()}")
    if sweep.budget:
        lines.append(f"budget: {sweep.budget}; a run that would end later is not begun, the same command runs it")
    unprobed = work.probes((cell.config for cell in sweep.cells("") if cell.is_timed), probed)
    if unprobed:
        lines.append(
            f"steps of {len(unprobed)} settings with measure_s are a guess: the sweep times a step of them first"
        )
    for number, planned in enumerate(launches, start=1):
        config = planned[0].config
        where = f" on emulated nodes, {config.link}" if emulated_cluster(config) else ""
        lines.append(f"launch {number}: {config.world_size} ranks{where}")
        lines += [f"  {run.run_id}  {run.describe()}: {_note(run.config)}" for run in planned]
    return lines


def _note(config: RunConfig) -> str:
    reason = config.unsupported()
    if reason:
        return f"unsupported: {reason}"
    worker = ledger.predict(config).worker
    return f"{config.steps} steps, {(worker.bytes_sent or 0) / 1e6:.3g} MB sent per worker and step"


def missing(launches: Sequence[list[PlannedRun]], found: Sequence[RunRecord]) -> list[list[PlannedRun]]:
    """Return the launches' runs that have no record or failed; a rejected run was measured: `replacements` has it."""
    ended = {record.run_id: record for record in found}

    def finished(run: PlannedRun) -> bool:
        """Emulated nodes may have become possible since; what no library supports stays unsupported."""
        record = ended.get(run.run_id)
        if record is None or record.status != "unsupported":
            return record is not None and (record.status == "ok" or record.is_rejected)
        return run.config.unsupported() is not None

    remaining = [[run for run in planned if not finished(run)] for planned in launches]
    return [planned for planned in remaining if planned]


def replacements(
    launches: Sequence[list[PlannedRun]], found: Sequence[RunRecord], max_per_cell: int
) -> list[list[PlannedRun]]:
    """Return launches that replace those runs whose every attempt was rejected, at most `max_per_cell` of a cell."""
    attempts: dict[tuple[str, int], list[RunRecord]] = {}
    for record in found:
        attempts.setdefault((record.cell, record.repeat), []).append(record)
    used = Counter(record.cell for record in found if record.attempt)

    def tried(run: PlannedRun) -> list[RunRecord]:
        return attempts.get((run.config.digest(), run.repeat), [])

    def is_due(run: PlannedRun) -> bool:
        """Whether a run is replaced, and if so count it."""
        rejected = bool(tried(run)) and all(record.is_rejected for record in tried(run))
        if not rejected or used[run.config.digest()] >= max_per_cell:
            return False
        used[run.config.digest()] += 1
        return True

    due = [
        [run.model_copy(update={"attempt": len(tried(run))}) for run in planned if is_due(run)] for planned in launches
    ]
    return [planned for planned in due if planned]
