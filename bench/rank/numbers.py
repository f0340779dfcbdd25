"""From what every rank brought home to the numbers of one run."""

from __future__ import annotations

import contextlib
import resource
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.config import RunConfig
from bench.nodes.guard import Evidence
from bench.rank.clock import PHASES
from bench.records import StepRecord
from strategies.base import Observed
from strategies.volume import Volume


@dataclass(frozen=True)
class RankReport:
    """What one rank brings to the gathering at the end of a run."""

    host: str
    cores: frozenset[int]  # that this rank may run on
    is_server: bool
    steps: list[StepRecord] = field(default_factory=list)
    observed: Observed = field(default_factory=Observed)
    rank_start: str = "exec"  # or "template"
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    checksum: int | None = None  # of the final weights
    evidence: Evidence | None = None  # of the monitor of an emulated node
    overshoots_s: list[float] = field(default_factory=list)  # of the sleeps in measured steps


def cpu_s() -> float:
    """CPU seconds that this process has used, all threads, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def reset_peak_memory() -> None:
    """Forget the peak so far: it belongs to an earlier run of this process."""
    with contextlib.suppress(OSError):  # a container may forbid it; the peak is then that of all runs
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The most resident memory this process has held since the last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def timing(config: RunConfig, reports: Sequence[RankReport]) -> dict[str, float | None]:
    """Return the timing columns over the measured steps of all workers.

    A step takes as long as its slowest worker; of workers that exchange every H-th step, as the mean of H. The rate is
    all work over the longest worker's time from the common start. Phases are means over workers and steps, so that
    they add up.
    """
    workers = [[s for s in report.steps if not s.warmup] for report in reports if not report.is_server]
    step_s = np.array([[step.step_s for step in steps] for steps in workers])  # (W, steps)
    slowest = step_s.reshape(len(workers), -1, config.sync_every).mean(axis=2).max(axis=0)
    steps = [step for steps in workers for step in steps]
    means = {f"{name}_s": _mean(steps, f"{name}_s") for name in (*PHASES, "communication")}
    total = means["communication_s"]
    communicates = config.num_workers > 1 or config.num_servers > 0
    overlap = 1 - means["exposed_communication_s"] / total if communicates and total > 0 else None
    return {
        **means,
        "tokens_per_s": config.tokens_per_step * config.steps / float(step_s.sum(axis=1).max()),
        "step_s": float(np.median(slowest)),
        "step_s_p95": float(np.percentile(slowest, 95)),
        "overlap_fraction": overlap,
    }


def steps_s(reports: Sequence[RankReport]) -> float:
    """Seconds that the longest worker spent in steps, warm-up included."""
    return max(sum(step.step_s for step in report.steps) for report in reports if not report.is_server)


def losses(reports: Sequence[RankReport]) -> dict[str, float | None]:
    """Return the loss of the first and of the last step, over the global batch; blank where nothing is trained."""
    workers = [report.steps for report in reports if not report.is_server]
    return {"first_loss": _mean_loss(workers, 0), "final_loss": _mean_loss(workers, -1)}


def _mean_loss(workers: Sequence[Sequence[StepRecord]], place: int) -> float | None:
    losses = [steps[place].loss for steps in workers]
    known = [loss for loss in losses if loss is not None]
    return float(np.mean(known)) if len(known) == len(losses) else None


def sleep_overshoot_s_p95(reports: Sequence[RankReport]) -> float | None:
    """How late layers ended that were slept through, 95th percentile over layers, steps and workers; None: no sleep."""
    late_s = [seconds for report in reports for seconds in report.overshoots_s]
    return float(np.percentile(late_s, 95)) if late_s else None


def resources(reports: Sequence[RankReport]) -> dict[str, float | None]:
    """Return CPU seconds (mean) and peak memory (largest) per role; blank for a role nobody had."""
    columns: dict[str, float | None] = {}
    for role, serves in (("worker", False), ("server", True)):
        of_role = [report for report in reports if report.is_server == serves]
        columns[f"{role}_cpu_s"] = float(np.mean([r.cpu_s for r in of_role])) if of_role else None
        columns[f"{role}_peak_memory_bytes"] = max((r.peak_memory_bytes for r in of_role), default=None)
    return columns


def wire(config: RunConfig, reports: Sequence[RankReport]) -> dict[str, float | None]:
    """Return bytes per step that the kernel counted on the links of the mean worker and the mean server.

    Headers included; blank where nobody counted.
    """
    columns: dict[str, float | None] = {}
    for role, serves in (("worker", False), ("server", True)):
        nodes = [report.evidence.counters for report in reports if report.is_server == serves and report.evidence]
        for name in ("bytes_sent", "bytes_received"):
            total = sum(getattr(counters, name) for counters in nodes)
            column = f"{name}_per_{role}_per_step_wire"
            columns[column] = total / len(nodes) / config.total_steps if nodes else None
    return columns


def serving(reports: Sequence[RankReport]) -> dict[str, float | str | None]:
    """Return how a parameter server's load was balanced, how stale its gradients were, and who waited longest."""
    missed = sum((report.observed.missed_updates for report in reports), Counter[int]())
    updates = missed.total()
    waits = [
        _mean([s for s in report.steps if not s.warmup], "exposed_communication_s")
        for report in reports
        if report.steps
    ]
    return {
        "shard_imbalance": reports[0].observed.shard_imbalance,
        "longest_wait_s": max(waits),
        "mean_staleness": sum(k * n for k, n in missed.items()) / updates if updates else None,
        "staleness_histogram": " ".join(f"{k}:{n}" for k, n in sorted(missed.items())) or None,
        "largest_lead": max(report.observed.largest_lead for report in reports) if updates else None,
    }


def volumes(config: RunConfig, reports: Sequence[RankReport]) -> tuple[list[Volume], list[Volume]]:
    """Return what each worker and each dedicated server moved per step, in the whole run."""
    of_role = [
        [report.observed.moved / config.total_steps for report in reports if report.is_server == serves]
        for serves in (False, True)
    ]
    return of_role[0], of_role[1]


def labels(config: RunConfig, reports: Sequence[RankReport]) -> list[str]:
    """Return what a reader of this run must know."""
    hosts = {report.host for report in reports}
    emulated = any(report.evidence for report in reports)
    machines = [reports] if emulated else [[r for r in reports if r.host == host] for host in hosts]
    found = {
        "oversubscribed": any(_crowded(config, ranks) for ranks in machines),
        "loopback": config.world_size > 1 and len(hosts) == 1 and config.kind.communicates,
        "shared_memory": any(report.observed.shares_memory for report in reports),
        "emulated": emulated,
        "emulated_compute": config.compute != "real",
        "not_ring": reports[0].observed.allreduce_algorithm == "not_ring",
    }
    return [label for label, applies in found.items() if applies]


def _crowded(config: RunConfig, ranks: Sequence[RankReport]) -> bool:
    """Whether the threads of one host's ranks outnumber the cores that they may use together."""
    cores = frozenset[int]().union(*(rank.cores for rank in ranks))
    return len(ranks) * config.num_threads > len(cores)


def _mean(steps: Sequence[StepRecord], name: str) -> float:
    return float(np.mean([getattr(step, name) for step in steps]))
