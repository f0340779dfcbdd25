"""What a sweep will cost: time and bytes, from runs that there are, else from a formula as rough as it says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bench import environment, ledger, links
from bench.config import RunConfig
from bench.records import PlannedRun, RunRecord

# The rough formula's: importing torch, arithmetic of a core in fp32, and bytes through memory or a fast network.
START_UP_CPU_S = 6.0
FLOPS_PER_S = 2e10
BYTES_PER_S = 1e9
ROUGHLY = (
    f"a rough formula ({START_UP_CPU_S:g} s of CPU to start a rank, {FLOPS_PER_S / 1e9:g} GFLOP/s a core, "
    f"{BYTES_PER_S / 1e9:g} GB/s unless a link is given)"
)


@dataclass(frozen=True)
class Cost:
    """What some planned runs will take: seconds, bytes sent by all ranks, and how many of them ran before."""

    seconds: float
    bytes_sent: float
    runs: int
    known: int

    def describe(self) -> str:
        """The estimate in one line, and what it rests on."""
        basis = [f"{self.known} runs from earlier ones in this folder"] if self.known else []
        basis += [f"{self.runs - self.known} from {ROUGHLY}"] if self.known < self.runs else []
        return f"about {duration(self.seconds)}, {size(self.bytes_sent)} sent: {' and '.join(basis)}"


def cost(launches: Iterable[Sequence[PlannedRun]], found: Iterable[RunRecord]) -> Cost:
    """Estimate some launches; a cell that ran in `found` takes as long as its median run did."""
    walls: dict[str, list[float]] = {}
    for record in found:
        if record.status == "ok" and record.wall_s is not None:
            walls.setdefault(record.cell, []).append(record.wall_s)
    seconds = bytes_sent = 0.0
    runs = known = 0
    for planned in launches:
        here = [run.config for run in planned if not run.config.unsupported()]
        strangers = [config for config in here if config.digest() not in walls]
        seconds += sum(median(walls[config.digest()]) for config in here if config.digest() in walls)
        seconds += sum(rough_training_s(config) for config in strangers)
        if strangers and len(strangers) == len(here):
            seconds += START_UP_CPU_S * here[0].world_size / min(environment.cores(), here[0].world_size)
        bytes_sent += sum(config.total_steps * bytes_per_step(config) for config in here)
        runs += len(here)
        known += len(here) - len(strangers)
    return Cost(seconds, bytes_sent, runs, known)


def bytes_per_step(config: RunConfig) -> float:
    """Bytes that all ranks together send in one step, by the closed form."""
    worker, server = ledger.predict(config)
    sent = config.num_workers * (worker.bytes_sent or 0)
    return sent + (config.num_servers * (server.bytes_sent or 0) if server else 0)


def rough_training_s(config: RunConfig) -> float:
    """Seconds of all steps if arithmetic and the busiest rank's bytes were all there is, one after the other."""
    worker, server = ledger.predict(config)
    busiest = max(worker.bytes_sent or 0, (server.bytes_sent or 0) if server else 0)
    rate = min(links.parse_links(config.link, config.world_size, config.num_servers)) / 8 if config.link else None
    return config.total_steps * (_rough_compute_s(config) + busiest / (rate or BYTES_PER_S))


def _rough_compute_s(config: RunConfig) -> float:
    """Seconds of one step's arithmetic on this machine's cores, or as long as it is slept through."""
    if config.compute == "none":
        return 0.0
    if config.emulated_forward_s is not None:
        return config.emulated_forward_s + (config.emulated_backward_s or 0)
    cores = min(environment.cores(), config.num_workers * config.num_threads)
    return config.tokens_per_step * config.gpt.flops_per_token / (FLOPS_PER_S * cores)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def size(nbytes: float) -> str:
    """Bytes as people say them, in powers of 1000."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes / 1e3:.3g} kB"
