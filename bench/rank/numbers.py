"""From the reports of all ranks to the columns of one run."""

from __future__ import annotations

import contextlib
import math
import resource
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.config import RunConfig
from bench.durations import durations
from bench.ledger import Ledger, RoleVolumes, WireSource, make_ledger
from bench.nodes.cpu import IDLE, CpuUse
from bench.nodes.guard import Evidence
from bench.rank.clock import PHASES
from bench.rank.model import model_flops_utilization, peak_flops_per_s
from bench.rank.wire import Wire
from bench.records import StepRecord
from strategies.base import Observed
from strategies.closed_forms import pipeline_bubble
from strategies.volume import Volume, mean_volume


@dataclass(frozen=True)
class RankReport:
    """What one rank reports to rank 0 at the end of a run."""

    host: str
    cores: frozenset[int]  # that this rank may run on
    is_server: bool
    steps: list[StepRecord] = field(default_factory=list)
    observed: Observed = field(default_factory=Observed)
    wire: Wire = field(default_factory=Wire)
    rank_start: str = "exec"  # or "template"
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    in_software: bool = False  # its processor has no instructions for the precision
    checksum: int | None = None  # of the final weights
    cpu_use: CpuUse = IDLE
    machine: str = ""  # the same on all nodes that one machine emulates
    energy_j: float | None = None  # of that machine's processors
    evidence: Evidence | None = None  # of the monitor of an emulated node
    overshoots_s: list[float] = field(default_factory=list)  # of the sleeps in measured steps


def cpu_s() -> float:
    """Return the CPU seconds that this process has used, all threads, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def reset_peak_memory() -> None:
    """Reset the peak of resident memory: it belongs to an earlier run of this process."""
    with contextlib.suppress(OSError):  # a container may forbid it; the peak is then that of all runs
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """Return the most resident memory this process has held since the last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def columns(config: RunConfig, reports: Sequence[RankReport], device: torch.device) -> dict[str, Any]:
    """Return the columns that follow from what all ranks report; `device` is where workers compute."""
    found = timing(config, reports)
    return {
        **found,
        **losses(reports),
        **resources(reports),
        "energy_j": energy_j(reports),
        **serving(reports),
        "num_nodes": len({report.host for report in reports}),
        "rank_start": "template" if {report.rank_start for report in reports} == {"template"} else "exec",
        "num_parameters": config.gpt.num_parameters,
        "mfu": _mfu(config, found["tokens_per_s"], device),
        "emulated_update_s": None if config.compute == "real" else durations(config).optimizer_s,
        "bubble_fraction_predicted": pipeline_bubble(config) if config.kind.splits == "layers" else None,
        **allreduce(reports[0].observed),
        **lateness(reports, found["step_s"]),
    }


def _mfu(config: RunConfig, tokens_per_s: float | None, device: torch.device) -> float | None:
    peak = config.peak_flops_per_s or peak_flops_per_s(device, config.precision)
    if peak is None or tokens_per_s is None or config.compute != "real":
        return None
    return model_flops_utilization(tokens_per_s / config.num_workers, config.gpt, peak)


def timing(config: RunConfig, reports: Sequence[RankReport]) -> dict[str, float | None]:
    """Return the timing columns over the measured steps of all workers.

    A step takes as long as on its slowest worker; if workers exchange every H-th step, the mean of H steps does.
    Throughput is all tokens over the slowest worker's time. Phases are means over workers and steps, so that they add
    up.
    """
    workers, step_s = _measured(reports)
    slowest = step_s.reshape(len(workers), -1, config.sync_every).mean(axis=2).max(axis=0)
    steps = [step for steps in workers for step in steps]
    means = {f"{name}_s": _mean(steps, f"{name}_s") for name in (*PHASES, "communication")}
    total = means["communication_s"]
    communicates = config.num_workers > 1 or config.num_servers > 0
    overlap = max(0.0, 1 - means["exposed_communication_s"] / total) if communicates and total > 0 else None
    return {
        **means,
        "tokens_per_s": tokens_per_s(config, reports),
        "step_s": float(np.median(slowest)),
        "step_s_p95": float(np.percentile(slowest, 95)),
        "overlap_fraction": overlap,
    }


def tokens_per_s(config: RunConfig, reports: Sequence[RankReport]) -> float:
    """Return all tokens of the measured steps over the slowest worker's time."""
    _, step_s = _measured(reports)
    return config.tokens_per_step * config.steps / float(step_s.sum(axis=1).max())


def _measured(reports: Sequence[RankReport]) -> tuple[list[list[StepRecord]], np.ndarray]:
    """Return the measured steps of every worker and their seconds (workers, steps)."""
    workers = [[s for s in report.steps if not s.warmup] for report in reports if not report.is_server]
    return workers, np.array([[step.step_s for step in steps] for steps in workers])


def steps_s(reports: Sequence[RankReport]) -> float:
    """Return the seconds that the slowest worker spent in steps, warm-up included."""
    return max(sum(step.step_s for step in report.steps) for report in reports if not report.is_server)


def losses(reports: Sequence[RankReport]) -> dict[str, float | None]:
    """Return the loss of the first and of the last step, over the global batch; None if it is unknown or not finite."""
    workers = [report.steps for report in reports if not report.is_server]
    return {"first_loss": _mean_loss(workers, 0), "final_loss": _mean_loss(workers, -1)}


def nonfinite_loss(config: RunConfig, reports: Sequence[RankReport], held_out_loss: float | None) -> str:
    """Return in which step the loss of a worker became infinite or NaN, in one line; '' if it never did.

    With fp16 loss scaling a step may overflow and be skipped: what counts is the last step.
    """
    workers = [[step.loss for step in report.steps] for report in reports if not report.is_server]
    finite = [all(loss is None or math.isfinite(loss) for loss in losses) for losses in zip(*workers, strict=True)]
    if not finite[-1]:
        first = max((step + 1 for step, is_finite in enumerate(finite) if is_finite), default=0)
        return f"loss is not finite from step {first} on"
    if not all(finite) and not config.loss_scaling:
        return f"loss is not finite at step {finite.index(False)}"
    if held_out_loss is not None and not math.isfinite(held_out_loss):
        return "held-out loss is not finite after the last step"
    return ""


def finite_or_none(value: float | None) -> float | None:
    """Return the value, None if it is infinite or NaN."""
    return value if value is not None and math.isfinite(value) else None


def _mean_loss(workers: Sequence[Sequence[StepRecord]], place: int) -> float | None:
    losses = [steps[place].loss for steps in workers]
    known = [loss for loss in losses if loss is not None]
    return finite_or_none(float(np.mean(known))) if known else None


def lateness(reports: Sequence[RankReport], step_s: float | None) -> dict[str, float | None]:
    """Return how late emulated layers ended, 95th percentile over all: in seconds and over a step; None without any."""
    late_s = [seconds for report in reports for seconds in report.overshoots_s]
    p95 = float(np.percentile(late_s, 95)) if late_s else None
    return {"sleep_overshoot_s_p95": p95, "lateness_share": p95 / step_s if p95 is not None and step_s else None}


def resources(reports: Sequence[RankReport]) -> dict[str, float | None]:
    """Return CPU seconds (mean) and peak memory (largest) per role; None for a role without ranks."""
    columns: dict[str, float | None] = {}
    for role, serves in (("worker", False), ("server", True)):
        of_role = _of_role(reports, serves)
        columns[f"{role}_cpu_s"] = float(np.mean([r.cpu_s for r in of_role])) if of_role else None
        columns[f"{role}_peak_memory_bytes"] = max((r.peak_memory_bytes for r in of_role), default=None)
    return columns


def energy_j(reports: Sequence[RankReport]) -> float | None:
    """Return the energy of the processors of all machines; None if one of them does not tell it."""
    found = {report.machine: report.energy_j for report in reports}
    known = [energy for energy in found.values() if energy is not None]
    return sum(known) if len(known) == len(found) else None


def serving(reports: Sequence[RankReport]) -> dict[str, float | str | None]:
    """Return balance and waiting of the servers, staleness of gradients, and the longest exposed communication."""
    missed = sum((report.observed.missed_updates for report in reports), Counter[int]())
    updates = missed.total()
    waits = [
        _mean([s for s in report.steps if not s.warmup], "exposed_communication_s")
        for report in reports
        if report.steps
    ]
    idle_s = [report.observed.server_idle_s for report in _of_role(reports, serves=True)]
    return {
        "shard_imbalance": reports[0].observed.shard_imbalance,
        "longest_wait_s": max(waits),
        "server_wait_s": float(np.mean(idle_s)) / max(len(report.steps) for report in reports) if idle_s else None,
        "mean_staleness": sum(k * n for k, n in missed.items()) / updates if updates else None,
        "staleness_histogram": " ".join(f"{k}:{n}" for k, n in sorted(missed.items())) or None,
        "largest_lead": max(report.observed.largest_lead for report in reports) if updates else None,
    }


def allreduce(observed: Observed) -> dict[str, str | None]:
    """Return which allreduce ran, at which message sizes that was seen, and at which it was no ring."""
    found = observed.allreduce_of_bytes
    return {
        "allreduce_algorithm": observed.allreduce_algorithm,
        "identified_bytes": " ".join(str(nbytes) for nbytes in sorted(found)) or None,
        "not_ring_bytes": " ".join(str(nbytes) for nbytes in sorted(found) if found[nbytes] == "not_ring") or None,
    }


def ledger(config: RunConfig, reports: Sequence[RankReport]) -> Ledger:
    """Return what the mean worker and the mean dedicated server moved per step, beside the closed form."""
    worker, server = (_volumes(config, _of_role(reports, serves)) for serves in (False, True))
    wires = [report.wire for report in reports]
    source = WireSource(
        by=wires[0].by,
        num_closed=sum(wire.num_closed for wire in wires),
        retransmitted=sum(wire.retransmitted for wire in wires) / max(1, sum(w.moved.bytes_sent or 0 for w in wires)),
        share_host=len({report.host for report in reports}) < len(reports),
    )
    return make_ledger(config, worker, server, source)


def _volumes(config: RunConfig, reports: Sequence[RankReport]) -> RoleVolumes:
    """Return the mean rank's volume per step, as strategies counted it and as the kernel did where it was asked."""
    counted = mean_volume([report.observed.moved for report in reports]) or Volume.unknown()
    wire = mean_volume([report.wire.moved for report in reports]) or Volume.unknown()
    return RoleVolumes(counted=counted / config.total_steps, wire=wire / config.total_steps)


def _of_role(reports: Sequence[RankReport], serves: bool) -> list[RankReport]:
    return [report for report in reports if report.is_server == serves]


def labels(config: RunConfig, reports: Sequence[RankReport]) -> list[str]:
    """Return the names of those of `records.LABELS` that apply to a run."""
    hosts = {report.host for report in reports}
    emulated = any(report.evidence for report in reports)
    # Emulated nodes share the cores of one machine.
    machines = [reports] if emulated else [[r for r in reports if r.host == host] for host in hosts]
    found = {
        "oversubscribed": any(_oversubscribed(config, ranks) for ranks in machines),
        "loopback": config.world_size > 1 and len(hosts) == 1 and config.kind.communicates,
        "shared_memory": any(report.observed.shares_memory for report in reports),
        "emulated": emulated,
        "emulated_compute": config.compute != "real",
        "slow_precision": any(report.in_software for report in reports),
        "not_ring": reports[0].observed.allreduce_algorithm == "not_ring",
    }
    return [label for label, applies in found.items() if applies]


def _oversubscribed(config: RunConfig, ranks: Sequence[RankReport]) -> bool:
    """Return whether the compute threads of one machine's ranks outnumber the cores that they may use together."""
    cores = frozenset[int]().union(*(rank.cores for rank in ranks))
    return len(ranks) * config.num_threads > len(cores)


def _mean(steps: Sequence[StepRecord], name: str) -> float:
    return float(np.mean([getattr(step, name) for step in steps]))
