"""What each rank of a launch does: join the others, then for each run build, train or serve, gather, judge, record."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from bench import devices, environment, failures, files, inputs, private, processes, records
from bench.config import BadInput, RunConfig
from bench.mpi import JOIN_S, RankInfo, tcp_settings
from bench.nodes.cpu import CpuMonitor, CpuUse
from bench.nodes.energy import EnergyMeter, machine
from bench.nodes.guard import Evidence, Monitor
from bench.nodes.link import on_node
from bench.rank import group, numbers, saved, trace
from bench.rank.asleep import EmulatedGPT
from bench.rank.build import Built, build
from bench.rank.clock import PhaseTimer
from bench.rank.duplex import duplex_factor
from bench.rank.judge import Judgement, judge_loss, judge_model, judge_surroundings
from bench.rank.numbers import RankReport
from bench.rank.rehearsal import Rehearsal, rehearse
from bench.rank.train import build_model, held_out_loss, train, with_tail
from bench.rank.weights import Weights, checksum, snapshot
from bench.rank.wire import Meter, Wire, open_meter
from bench.records import PlannedRun, RunRecord, StepRecord
from bench.scale_model import scales
from bench.summary import Summary
from strategies.environment import mpi_environment, waiting_environment
from strategies.group import Group
from strategies.timeline import KeepsTimeline
from strategies.volume import Volume

KeepTrace = Callable[[list[trace.RankTrace]], None]
Tell = Callable[[StepRecord], None]


@dataclass(frozen=True)
class Result:
    """What rank 0 keeps of a run."""

    record: RunRecord
    steps: list[StepRecord]
    weights: Weights


def run_all(
    planned: Sequence[PlannedRun], rank_info: RankInfo, keep: Callable[[Result], None],
    keep_trace: KeepTrace | None = None, tell: Tell | None = None, check: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Do this rank's part of all runs, one after the other; rank 0 calls `keep` after each. Collective.

    `check` is called once all ranks have joined. A rank that finds bad input before that and ends alone may leave
    Open MPI's launcher waiting for another rank that is just connecting.
    `tell` is called after each step of this rank, outside the time of the step. Each run has a fresh model and a
    deadline of its own. BadInput is raised on every rank alike; any other exception ends the whole launch.
    """
    if rank_info.launcher != "none":
        processes.die_with_parent()
    own = mpi_environment(os.environ) | waiting_environment(os.environ) | tcp_settings(planned[0].config)
    os.environ.update(own)
    if rank_info.starts_mpi:
        os.environ.update(private.shared_memory_settings(os.environ))
    if keep_trace is not None:
        os.environ.update(planned[0].config.kind.timeline_environment)
    group.set_deadline(min(JOIN_S, planned[0].config.timeout_s))
    now = planned[0]
    try:
        ranks = group.join([run.config.strategy for run in planned], rank_info, now.config)
        group.agree(ranks, planned, tracing=keep_trace is not None)
        group.agreed(ranks, check)
        if ranks.rank == 0:
            failures.mark_joined()
        gc.freeze()  # what is imported stays: collecting then takes milliseconds
        with group.monitored(ranks, rank_info, lambda: now.config):
            for now in planned:
                group.set_deadline(now.config.timeout_s)
                _run(now, rank_info, ranks, keep, keep_trace, tell)
                gc.collect()  # models and optimizers are cycles; their memory must not count for the next run
    except BadInput:
        raise
    except Exception as error:
        group.end_all_ranks(rank_info, now.config, error)
    finally:
        group.clear_deadline()


def _run(
    planned: PlannedRun, rank_info: RankInfo, ranks: Group, keep: Callable[[Result], None],
    keep_trace: KeepTrace | None, tell: Tell | None,
) -> None:  # fmt: skip
    """Do one run from end to end. Collective."""
    config, started_at = planned.config, records.now()
    torch.set_num_threads(config.num_threads)
    numbers.reset_peak_memory()
    # Before anything is built, so that a scale model whose target is not understood is refused at once.
    scaled = group.agreed(ranks, lambda: scales(config) if ranks.rank == 0 else {})
    built = build(config, rank_info, ranks)
    # Of a cell only in the first repeat: it takes most of a second, and the transport is that of every launch.
    before = {**scaled, "duplex_factor": duplex_factor(config, ranks) if planned.repeat == 0 else None}
    ranks.barrier()
    monitor = Monitor(ranks, config.patience_s, config.max_foreign_cpu_share) if on_node() else None
    meter, cores, energy = open_meter(), CpuMonitor(), EnergyMeter()
    done = _work(planned, built, meter, tell, tracing=keep_trace is not None)
    built.strategy.close()
    ranks.barrier()
    wire, cpu_use, energy_j = Wire.read(meter), cores.end(), energy.joules()
    if keep_trace is not None:
        traces = ranks.gather(trace.collect(ranks.rank, done.clock, built.strategy))
        if ranks.rank == 0:
            keep_trace(traces)
    report = _report(planned, built, done, wire, cpu_use, monitor.end() if monitor else None)
    reports = ranks.gather(replace(report, energy_j=energy_j))
    weights = _final_weights(config, built, ranks)
    rehearsals = rehearse(config, rank_info, ranks) if _is_rehearsed(planned, ranks, reports) else []
    if ranks.rank == 0:
        keep(_result(planned, started_at, built, weights, rehearsals, reports, before))
    ranks.barrier()


@dataclass(frozen=True)
class Done:
    """What one rank has after its steps."""

    clock: PhaseTimer
    cpu_s: float
    peak_memory_bytes: int  # before close(), which may make the model whole
    steps: list[StepRecord] = field(default_factory=list)


def _work(planned: PlannedRun, built: Built, meter: Meter, tell: Tell | None, tracing: bool) -> Done:
    """Train or serve until the run's last step."""
    config, strategy = planned.config, built.strategy
    clock, cpu_before = PhaseTimer(built.device), numbers.cpu_s()
    if built.corpus is None:
        if tracing and isinstance(strategy, KeepsTimeline):
            strategy.start_timeline()
        strategy.serve()
        return Done(clock, numbers.cpu_s() - cpu_before, numbers.peak_memory_bytes())
    steps: list[StepRecord] = []
    for step in train(config, built.module, strategy, built.corpus, built.device, clock, meter.moved):
        steps.append(step)
        if tell:
            tell(step)
        if tracing and isinstance(strategy, KeepsTimeline) and len(steps) == config.total_steps - trace.STEPS:
            strategy.start_timeline()
    return Done(clock, numbers.cpu_s() - cpu_before, numbers.peak_memory_bytes(), steps)


def _is_gated(planned: PlannedRun) -> bool:
    """Return whether the gate judges a run: of a cell only the first repeat, the others train the same model."""
    return planned.config.check_equivalence and planned.repeat == 0 and planned.config.kind.trains_one_model


def _is_rehearsed(planned: PlannedRun, ranks: Group, reports: list[RankReport]) -> bool:
    """Return whether the gate compares weights: those of a run whose loss is not finite tell nothing. Collective."""
    if not (_is_gated(planned) and planned.config.exact):
        return False
    is_finite: bool = ranks.broadcast(ranks.rank == 0 and not numbers.nonfinite_loss(planned.config, reports, None))
    return is_finite


def _report(
    planned: PlannedRun, built: Built, done: Done, wire: Wire, cpu_use: CpuUse, evidence: Evidence | None
) -> RankReport:
    """Return what rank 0 must know of this rank."""
    model, observed = built.model, built.strategy.observe()
    return RankReport(
        observed=observed,
        wire=wire,
        host=socket.gethostname(),
        cores=frozenset(os.sched_getaffinity(0)),
        is_server=built.strategy.is_server,
        steps=with_tail(done.steps, observed.moved, wire.moved),
        cpu_s=done.cpu_s,
        rank_start=processes.rank_start,
        peak_memory_bytes=done.peak_memory_bytes,
        in_software=computes_in_software(planned.config, built.device),
        checksum=checksum(snapshot(model)) if _is_gated(planned) and not built.strategy.is_server else None,
        cpu_use=cpu_use,
        machine=machine(),
        evidence=evidence,
        overshoots_s=model.schedule.overshoots_s if isinstance(model, EmulatedGPT) else [],
    )


def computes_in_software(config: RunConfig, device: torch.device) -> bool:
    """Return whether a worker's processor has no instructions for the precision of its arithmetic."""
    return config.compute == "real" and device.type == "cpu" and not devices.cpu_computes(config.precision)


def _result(
    planned: PlannedRun, started_at: str, built: Built, weights: Weights, rehearsals: list[Rehearsal],
    reports: list[RankReport], before: dict[str, Any],
) -> Result:  # fmt: skip
    """Judge the run and return its record.

    `weights` are the whole model's after the last step, `before` the columns that were known before the first one.
    """
    config, corpus = planned.config, built.corpus
    assert corpus is not None  # rank 0 always trains
    trained = config.compute == "real"
    model = with_weights(config, weights, built.device) if trained and config.kind.splits else built.model
    held_out = held_out_loss(config, model, corpus, built.device) if trained else None
    ledger = numbers.ledger(config, reports)
    diverged = bool(numbers.nonfinite_loss(config, reports, held_out))
    found = [
        judge_loss(config, reports, held_out),
        Judgement() if diverged else judge_model(config, reports, held_out, rehearsals, corpus, built.device),
    ]
    guard = judge_surroundings(config, reports, ledger)
    columns = {**before, **numbers.columns(config, reports, built.device)}
    columns["held_out_loss"] = numbers.finite_or_none(held_out)
    wrong = "; ".join(judgement.reason for judgement in found if judgement.reason)
    reason = "; ".join(filter(None, [wrong, guard.reason]))
    record = planned.record(
        "invalid" if reason else "ok",
        environment.digest(environment.collect()),
        started_at=started_at,
        reason=reason,
        rejected=bool(guard.reason) and not wrong,
        labels=numbers.labels(config, reports),
        steps_s=numbers.steps_s(reports),
        summary=Summary.model_validate({**columns, **found[1].columns, **guard.columns}),
        ledger=ledger,
    )
    steps = [step for report in reports for step in report.steps]
    if ledger.wire_counted_by is None:
        steps = [replace(step, wire=Volume.unknown()) for step in steps]
    return Result(record, steps, weights)


def _final_weights(config: RunConfig, built: Built, ranks: Group) -> Weights:
    """Return on rank 0 the whole model's weights; collective where workers hold parts of it."""
    if config.compute != "real" or not (ranks.rank == 0 or config.kind.splits):
        return {}
    return built.strategy.whole(snapshot(built.model))


def with_weights(config: RunConfig, weights: Weights, device: torch.device) -> torch.nn.Module:
    """Return a whole model with these weights."""
    model = build_model(config, device)
    model.load_state_dict(weights)
    return model


def write_folder(out: Path, result: Result) -> None:
    """Add one run to a results folder."""
    if not (out / "environment.json").exists():
        values = result.record.config.model_dump(mode="json", exclude_defaults=True)
        files.write_whole(out / "sweep.yaml", yaml.safe_dump({"grid": [values]}, sort_keys=False))
        read = inputs.identify([result.record.config])
        files.write_json(out / "environment.json", {**environment.collect(), "inputs": read})
    records.write_steps(out, result.record.run_id, result.steps)
    records.append(out, result.record)


def save_parameters(path: Path, result: Result) -> None:
    """Write the final weights as a plain state dict, with what it takes to use them (rank/saved.py)."""
    config = result.record.config
    saved.write(path, result.weights, config.gpt, config.data)
