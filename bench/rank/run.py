"""What each rank of a launch does: join the others, then for each run build, serve or train, gather."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from bench import environment, processes, records
from bench.config import BadInput, RunConfig
from bench.durations import durations
from bench.ledger import header_shares, make_ledger, wire_ratios
from bench.mpi import RankInfo, tcp_settings
from bench.nodes import guard
from bench.nodes.guard import Evidence, Monitor
from bench.nodes.link import on_node
from bench.rank import data, equivalence, group, numbers, trace
from bench.rank.asleep import EmptyCorpus, EmulatedGPT, EmulatedOptimizer
from bench.rank.clock import PhaseTimer
from bench.rank.duplex import duplex_factor
from bench.rank.model import model_flops_utilization, peak_flops_per_s
from bench.rank.numbers import RankReport
from bench.rank.train import build_model, build_optimizer, held_out_loss, train
from bench.records import Ledger, PlannedRun, RunRecord, StepRecord
from bench.scale_model import scales
from bench.summary import Summary
from strategies import create
from strategies.base import Strategy
from strategies.environment import mpi_environment
from strategies.group import Group
from strategies.timeline import KeepsTimeline


@dataclass(frozen=True)
class Result:
    """What rank 0 has at the end of a run."""

    record: RunRecord
    steps: list[StepRecord]
    weights: equivalence.Weights


def run_all(
    planned: Sequence[PlannedRun], rank_info: RankInfo, keep: Callable[[Result], None],
    keep_trace: Callable[[list[trace.RankTrace]], None] | None = None,
) -> None:  # fmt: skip
    """Do this rank's part of all runs, one after the other; rank 0 calls `keep` after each. Collective.

    Each run has a fresh model and a deadline of its own. BadInput is raised on every rank alike; any other
    exception ends the whole launch.
    """
    if rank_info.launcher != "none":
        processes.die_with_parent()
    os.environ.update(mpi_environment(os.environ) | tcp_settings(planned[0].config))
    if keep_trace is not None:
        os.environ.update(planned[0].config.kind.timeline_environment)
    group.set_deadline(planned[0].config.timeout_s)
    now = planned[0]
    try:
        ranks = group.join([run.config.strategy for run in planned], rank_info, now.config)
        group.agree(ranks, planned)
        with group.watched(ranks, rank_info, lambda: now.config):
            for now in planned:
                group.set_deadline(now.config.timeout_s)
                _run(now, rank_info, ranks, keep, keep_trace)
    except BadInput:
        raise
    except Exception as error:
        group.end_everyone(rank_info, now.config, error)
    finally:
        group.clear_deadline()


def _run(
    planned: PlannedRun, rank_info: RankInfo, ranks: Group, keep: Callable[[Result], None],
    keep_trace: Callable[[list[trace.RankTrace]], None] | None,
) -> None:  # fmt: skip
    """Build, train or serve, gather, judge: one run from end to end. Collective."""
    config, started_at = planned.config, records.now()
    torch.set_num_threads(config.num_threads)
    numbers.reset_peak_memory()
    strategy = create(config.strategy, ranks, config)
    device = group.together(ranks, lambda: pick_device(config, rank_info, strategy))
    corpus = group.together(ranks, lambda: None if strategy.is_server else load_data(config))
    # How a scale model relates to its target; found out now, so that a target nobody understands is refused now.
    scaled = group.together(ranks, lambda: scales(config) if ranks.rank == 0 else {})
    names = [name for name in ranks.gather(corpus.name if corpus else None) if name]
    group.raise_together(ranks, _different_data(names))
    model, optimizer = group.together(ranks, lambda: build(config, strategy, device))
    module = strategy.prepare(model, optimizer)
    duplex = duplex_factor(config)
    ranks.barrier()
    monitor = Monitor(ranks, config.patience_s) if on_node() else None
    cpu_before = numbers.cpu_s()
    gated = config.check_equivalence and planned.repeat == 0 and config.kind.trains_one_model
    steps: list[StepRecord] = []
    at_gate: equivalence.Weights = {}
    clock = PhaseTimer(device)
    if corpus is None:
        strategy.serve()
    else:
        for step in train(config, module, strategy, corpus, device, clock):
            steps.append(step)
            if isinstance(strategy, KeepsTimeline) and keep_trace and len(steps) == config.total_steps - trace.STEPS:
                strategy.start_timeline()
            if gated and len(steps) == equivalence.gate_steps(config):
                strategy.settle()
                at_gate = equivalence.snapshot(model)
    cpu_s = numbers.cpu_s() - cpu_before
    strategy.close()
    ranks.barrier()
    if keep_trace is not None:
        lanes = ranks.gather(trace.collect(ranks.rank, clock, strategy))
        if ranks.rank == 0:
            keep_trace(lanes)
    evidence = monitor.end() if monitor else None
    checksum = equivalence.checksum(equivalence.snapshot(model)) if gated and corpus else None
    late_s = model.schedule.overshoots_s if isinstance(model, EmulatedGPT) else []
    reports = ranks.gather(_report(config, strategy, steps, cpu_s, checksum, evidence, late_s))
    if ranks.rank == 0:
        assert corpus is not None  # rank 0 always works
        columns = scaled | {"duplex_factor": duplex} | _numbers(config, reports, device)
        keep(_result(planned, started_at, reports, columns, model, at_gate, corpus, device))
    ranks.barrier()


def _different_data(names: list[str]) -> str | None:
    others = [name for name in names if name != names[0]]
    return f"data: the workers read different tokens: {names[0]} and {others[0]}" if others else None


def load_data(config: RunConfig) -> data.Corpus:
    """Return what to train on; nothing is read where nothing is trained."""
    return data.load(config) if config.compute == "real" else EmptyCorpus()


def build(config: RunConfig, strategy: Strategy, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the model and the optimizer; emulated for a worker without real compute, never for a server."""
    if config.compute == "real" or strategy.is_server:
        model = build_model(config, device)
        return model, build_optimizer(config, model)
    emulated = EmulatedGPT(config, durations(config), strategy.worker)
    # Where servers update at every step, workers never do; a server on a worker's rank takes the settings.
    if config.kind.has_servers and config.server_role == "update" and config.sync_every == 1:
        return emulated, build_optimizer(config, emulated)
    return emulated, EmulatedOptimizer(emulated.parameters(), emulated.schedule)


def pick_device(config: RunConfig, rank_info: RankInfo, strategy: Strategy) -> torch.device:
    """Return where this rank computes: a GPU per local rank, the CPU, or nowhere (a server keeps no model)."""
    if strategy.is_server:
        return torch.device("meta")
    if (
        config.compute != "real"
        or config.device == "cpu"
        or (config.device == "auto" and not torch.cuda.is_available())
    ):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput(f"device: no CUDA device on {platform.node()}; use --device cpu")
    device = torch.device("cuda", rank_info.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _report(
    config: RunConfig, strategy: Strategy, steps: list[StepRecord], cpu_s: float, checksum: int | None,
    evidence: Evidence | None, late_s: list[float],
) -> RankReport:  # fmt: skip
    return RankReport(
        observed=strategy.observe(),
        host=platform.node(),
        cores=frozenset(os.sched_getaffinity(0)),
        is_server=strategy.is_server,
        steps=steps,
        cpu_s=cpu_s,
        rank_start=processes.rank_start,
        peak_memory_bytes=numbers.peak_memory_bytes(),
        checksum=checksum,
        evidence=evidence,
        overshoots_s=late_s,
    )


def _numbers(config: RunConfig, reports: list[RankReport], device: torch.device) -> dict[str, Any]:
    timing = numbers.timing(config, reports)
    return {
        **timing,
        **numbers.losses(reports),
        **numbers.resources(reports),
        **numbers.serving(reports),
        "num_nodes": len({report.host for report in reports}),
        "rank_start": "template" if {report.rank_start for report in reports} == {"template"} else "exec",
        "num_parameters": config.gpt.num_parameters,
        "mfu": _mfu(config, timing["tokens_per_s"], device),
        "allreduce_algorithm": reports[0].observed.allreduce_algorithm,
        "sleep_overshoot_s_p95": numbers.sleep_overshoot_s_p95(reports),
    }


def _result(
    planned: PlannedRun, started_at: str, reports: list[RankReport], columns: dict[str, Any],
    model: nn.Module, at_gate: equivalence.Weights, corpus: data.Corpus, device: torch.device,
) -> Result:  # fmt: skip
    """Judge the trained model and the emulated network, and put rank 0's record together."""
    config = planned.config
    trained = config.compute == "real"
    columns["held_out_loss"] = held_out_loss(config, model, corpus, device) if trained else None
    steps = [step for report in reports for step in report.steps]
    volumes = make_ledger(config, *numbers.volumes(config, reports), numbers.wire(config, reports))
    reasons = [
        _pass_gate(config, reports, columns, at_gate, corpus, device),
        _pass_guard(config, reports, columns, volumes),
    ]
    reason = "; ".join(filter(None, reasons))
    record = planned.record(
        "invalid" if reason else "ok",
        environment.digest(environment.collect()),
        started_at=started_at,
        reason=reason,
        labels=numbers.labels(config, reports),
        steps_s=numbers.steps_s(reports),
        summary=Summary.model_validate(columns),
        ledger=volumes,
    )
    return Result(record, steps, equivalence.snapshot(model) if trained else {})


def _pass_gate(
    config: RunConfig, reports: list[RankReport], columns: dict[str, Any],
    at_gate: equivalence.Weights, corpus: data.Corpus, device: torch.device,
) -> str:  # fmt: skip
    """Add how far the weights are from one process's, or how much less was learnt; return what is wrong, or nothing.

    The gate stands before a cell's first columns count; its other repeats train the same thing.
    """
    checksums = {report.checksum for report in reports if not report.is_server}
    if checksums == {None}:
        return ""
    different = len(checksums) if config.workers_agree else 1  # workers that never wait never hold the same weights
    if not config.exact:
        columns["convergence"] = equivalence.convergence(config, columns["held_out_loss"], corpus, device)
        return equivalence.convergence_failure(columns["convergence"], different)
    verdict = equivalence.compare(config, at_gate, *equivalence.reference_weights(config, corpus, device))
    columns |= {"equivalence_error": verdict.error, "equivalence_bound": verdict.bound}
    return verdict.failure(different)


def _pass_guard(config: RunConfig, reports: list[RankReport], columns: dict[str, Any], volumes: Ledger) -> str:
    """Add what was seen of the emulated network; return why it was the bottleneck itself, or nothing."""
    evidence = [report.evidence for report in reports if report.evidence]
    if not evidence:
        return ""
    found = guard.to_columns(evidence, config.total_steps)
    columns |= found
    return guard.invalid_reason(found, wire_ratios(volumes), header_shares(volumes), columns["sleep_overshoot_s_p95"])


def _mfu(config: RunConfig, tokens_per_s: float | None, device: torch.device) -> float | None:
    peak = config.peak_flops_per_s or peak_flops_per_s(device, config.precision)
    if peak is None or tokens_per_s is None or config.compute != "real":
        return None
    return model_flops_utilization(tokens_per_s / config.num_workers, config.gpt, peak)


def write_folder(out: Path, result: Result) -> None:
    """Add one run to a results folder."""
    if not (out / "environment.json").exists():
        values = result.record.config.model_dump(mode="json", exclude_defaults=True)
        records.write_whole(out / "sweep.yaml", yaml.safe_dump({"grid": [values]}, sort_keys=False))
        records.write_json(out / "environment.json", environment.collect())
    records.write_steps(out, result.record.run_id, result.steps)
    records.append(out, result.record)


def save_parameters(path: Path, result: Result) -> None:
    """Write the final weights as a plain state dict."""
    torch.save(result.weights, path)
