"""Estimate what runs of a sweep cost, in seconds and bytes: from earlier runs, else from a rough formula."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from bench import environment, ledger, links
from bench.config import GATE_STEPS, RunConfig
from bench.records import PlannedRun, RunRecord
from bench.sweep import work

# Of the rough formula: CPU seconds to start a rank, bytes per second without a shaped link.
START_UP_CPU_S = 3.0
BYTES_PER_S = 1e9
FORMULA = (
    f"a rough formula ({START_UP_CPU_S:g} s of CPU to start a rank, {work.FLOPS_PER_S / 1e9:g} GFLOP/s a core, "
    f"{BYTES_PER_S / 1e9:g} GB/s unless a link is given)"
)


class RunTimes:
    """How long runs take: as long as earlier ones of their cell; else by the formula, corrected by all earlier runs.

    `probed` is what probes of one worker's step found (`work`).
    """

    def __init__(self, found: Iterable[RunRecord], probed: work.Probed | None = None) -> None:
        self._probed = probed or {}
        self._wall_s: dict[str, list[float]] = {}
        self._ratios: dict[str, list[float]] = {}  # by compute: measured over the formula's seconds of all steps
        self._overheads_s: list[float] = []  # of a run: its wall time less its steps
        for record in found:
            self.add(record)

    def add(self, record: RunRecord) -> None:
        """Learn from a run that has ended."""
        if record.summary is None or record.wall_s is None:
            return
        self._wall_s.setdefault(record.cell, []).append(record.wall_s)
        if record.steps_s is not None:
            formula_s = rough_training_s(record.config, self._probed)
            self._ratios.setdefault(record.config.compute, []).append(record.steps_s / formula_s if formula_s else 1.0)
            self._overheads_s.append(record.wall_s - record.steps_s)

    def knows(self, config: RunConfig) -> bool:
        """Return whether the cell has run before."""
        return config.digest() in self._wall_s

    def seconds(self, config: RunConfig) -> float:
        """Return the estimate of one run's wall time; with its part of the launch's start-up if any run is known."""
        # The first run of a launch pays its start-up: the means of its cells add up to the launch, medians do not.
        if self.knows(config):
            return fmean(self._wall_s[config.digest()])
        gate_steps = GATE_STEPS * config.num_workers if config.check_equivalence else 0
        gate_s = gate_steps * work.one_worker(config, self._probed).step_s if gate_steps else 0.0
        steps_s = rough_training_s(config, self._probed) * median(self._ratios.get(config.compute, [1.0]))
        return steps_s + gate_s + (fmean(self._overheads_s) if self._overheads_s else 0.0)

    def start_up_s(self, world_size: int) -> float:
        """Return what the start of a launch adds to the estimates of its runs; 0 if they include it."""
        cores = min(environment.cores(), world_size)
        return 0.0 if self._overheads_s else START_UP_CPU_S * world_size / cores


@dataclass(frozen=True)
class Cost:
    """Estimated cost of planned runs: seconds, bytes sent by all ranks; `known` of the runs have run before."""

    seconds: float
    bytes_sent: float
    runs: int
    known: int

    def describe(self) -> str:
        """Return the estimate and its basis in one line."""
        basis = [f"{self.known} runs from earlier runs in this folder"] if self.known else []
        basis += [f"{self.runs - self.known} from {FORMULA}"] if self.known < self.runs else []
        return f"about {format_duration(self.seconds)}, {format_bytes(self.bytes_sent)} sent: {' and '.join(basis)}"


def cost(launches: Iterable[Sequence[PlannedRun]], times: RunTimes) -> Cost:
    """Estimate the cost of launches; runs that no library supports cost nothing."""
    supported = [[run.config for run in planned if not run.config.unsupported()] for planned in launches]
    configs = [config for planned in supported for config in planned]
    start_ups_s = sum(times.start_up_s(planned[0].world_size) for planned in supported if planned)
    return Cost(
        seconds=start_ups_s + sum(map(times.seconds, configs)),
        bytes_sent=sum(config.total_steps * bytes_per_step(config) for config in configs),
        runs=len(configs),
        known=sum(map(times.knows, configs)),
    )


def bytes_per_step(config: RunConfig) -> float:
    """Bytes that all ranks together send in one step, by the closed forms of the strategies."""
    found = ledger.predict(config)
    by_servers = config.num_servers * (found.server.bytes_sent or 0) if found.server else 0
    return config.num_workers * (found.worker.bytes_sent or 0) + by_servers


def rough_training_s(config: RunConfig, probed: work.Probed | None = None) -> float:
    """Seconds of all steps without overlap: compute, then the busiest rank's bytes over the slowest link's rate."""
    found = ledger.predict(config)
    busiest = max(role.bytes_sent or 0 for role in (found.worker, found.server) if role)
    rate = min(links.parse_links(config.link, config.world_size, config.num_servers)) / 8 if config.link else None
    return config.total_steps * (_rough_compute_s(config, probed or {}) + busiest / (rate or BYTES_PER_S))


def _rough_compute_s(config: RunConfig, probed: work.Probed) -> float:
    """Seconds of one step's compute: what the slowest worker sleeps, or one worker's step where cores are shared."""
    if config.compute == "none":
        return 0.0
    step_s = work.one_worker(config, probed).step_s
    if config.compute == "emulated":
        return step_s / min(config.speeds)
    threads = config.num_workers * config.num_threads
    return step_s * max(1.0, threads / environment.cores())


def format_duration(seconds: float) -> str:
    """Format seconds with a readable unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def format_bytes(nbytes: float) -> str:
    """Format bytes with a decimal unit."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes / 1e3:.3g} kB"
