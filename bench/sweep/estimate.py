"""Estimate what a sweep costs, in seconds and bytes: from earlier runs of the same cells, else from a rough formula."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bench import environment, ledger, links
from bench.config import RunConfig
from bench.durations import durations
from bench.records import PlannedRun, RunRecord

# Of the rough formula: CPU seconds to import torch, a core's fp32 FLOP/s, bytes per second without a shaped link.
START_UP_CPU_S = 6.0
FLOPS_PER_S = 2e10
BYTES_PER_S = 1e9
FORMULA = (
    f"a rough formula ({START_UP_CPU_S:g} s of CPU to start a rank, {FLOPS_PER_S / 1e9:g} GFLOP/s a core, "
    f"{BYTES_PER_S / 1e9:g} GB/s unless a link is given)"
)


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


def cost(launches: Iterable[Sequence[PlannedRun]], found: Iterable[RunRecord]) -> Cost:
    """Estimate the cost of launches; a cell with `ok` runs in `found` takes their median wall time."""
    walls: dict[str, list[float]] = {}
    for record in found:
        if record.status == "ok" and record.wall_s is not None:
            walls.setdefault(record.cell, []).append(record.wall_s)
    seconds = bytes_sent = 0.0
    runs = known = 0
    for planned in launches:
        supported = [run.config for run in planned if not run.config.unsupported()]
        unknown = [config for config in supported if config.digest() not in walls]
        seconds += sum(median(walls[config.digest()]) for config in supported if config.digest() in walls)
        seconds += sum(rough_training_s(config) for config in unknown)
        if unknown and len(unknown) == len(supported):
            seconds += START_UP_CPU_S * supported[0].world_size / min(environment.cores(), supported[0].world_size)
        bytes_sent += sum(config.total_steps * bytes_per_step(config) for config in supported)
        runs += len(supported)
        known += len(supported) - len(unknown)
    return Cost(seconds, bytes_sent, runs, known)


def bytes_per_step(config: RunConfig) -> float:
    """Bytes that all ranks together send in one step, by the closed forms of the strategies."""
    found = ledger.predict(config)
    by_servers = config.num_servers * (found.server.bytes_sent or 0) if found.server else 0
    return config.num_workers * (found.worker.bytes_sent or 0) + by_servers


def rough_training_s(config: RunConfig) -> float:
    """Seconds of all steps without overlap: compute, then the busiest rank's bytes over the slowest link's rate."""
    found = ledger.predict(config)
    busiest = max(role.bytes_sent or 0 for role in (found.worker, found.server) if role)
    rate = min(links.parse_links(config.link, config.world_size, config.num_servers)) / 8 if config.link else None
    return config.total_steps * (_rough_compute_s(config) + busiest / (rate or BYTES_PER_S))


def _rough_compute_s(config: RunConfig) -> float:
    """Seconds of one step's compute: what the slowest worker sleeps, or its FLOPs over this machine's rate."""
    if config.compute == "none":
        return 0.0
    if config.compute == "emulated":
        slept = durations(config)
        return (slept.compute_s + slept.optimizer_s) / min(config.speeds)
    cores = min(environment.cores(), config.num_workers * config.num_threads)
    return config.tokens_per_step * config.gpt.flops_per_token / (FLOPS_PER_S * cores)


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
