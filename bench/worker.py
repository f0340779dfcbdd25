"""What each rank of a run does: join the group, build, serve or train, gather."""

from __future__ import annotations

import faulthandler
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml

from bench import data, environment, equivalence, records, summary
from bench.config import AgreedBadInput, BadInput, RunConfig
from bench.launch import Placement, die_with_parent, mpi_environment
from bench.ledger import Volume, make_ledger
from bench.model import GPT, model_flops_utilization, peak_flops_per_s
from bench.records import RunRecord, StepRecord, Summary, run_id
from bench.summary import RankReport
from bench.train import build_model, build_optimizer, held_out_loss, train
from strategies import create
from strategies.base import WIRE_DTYPES, Group, Options, SingleGroup, Strategy

FLUSH_S = 0.2


@dataclass(frozen=True)
class Result:
    """What rank 0 has at the end of a run."""

    record: RunRecord
    steps: list[StepRecord]
    weights: equivalence.Weights


class MPIGroup:
    """The ranks of an MPI world."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._comm = MPI.COMM_WORLD
        self.rank = self._comm.rank
        self.size = self._comm.size

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value on rank 0, an empty list elsewhere. Collective."""
        return self._comm.gather(value) or []

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value everywhere. Collective."""
        return self._comm.bcast(value)

    def barrier(self) -> None:
        """Return once every rank is here. Collective."""
        self._comm.Barrier()


def run(config: RunConfig, placement: Placement) -> Result | None:
    """Run this rank's part; return the result on rank 0, None elsewhere. Collective.

    BadInput is raised on every rank alike. Any other exception ends the whole run.
    """
    faulthandler.dump_traceback_later(config.timeout_s, exit=True)
    if placement.launcher != "none":
        die_with_parent()
    os.environ.update(mpi_environment(os.environ))
    torch.set_num_threads(config.num_threads)
    try:
        group = make_group(config, placement)
        _agree(group, config)
        return _run(config, placement, group)
    except BadInput:
        raise
    except Exception:
        _end_everyone(placement)
    finally:
        faulthandler.cancel_dump_traceback_later()


def make_group(config: RunConfig, placement: Placement) -> Group:
    """Join the ranks that the launcher started. Collective."""
    if config.strategy == "ring_allreduce":
        ring = _import_horovod()
        ring.pin_knobs(make_options(config), over_mpi=placement.launcher == "mpirun")
        if placement.launcher == "horovodrun":
            group: Group = ring.HorovodGroup()
            return group
    elif placement.launcher == "horovodrun":
        raise BadInput(f"strategy: horovodrun --gloo starts ring_allreduce only, not {config.strategy}; use mpirun")
    return MPIGroup() if placement.launcher == "mpirun" else SingleGroup()


def _import_horovod() -> Any:
    try:
        from strategies import ring_allreduce
    except ImportError as error:
        raise BadInput(f"strategy: ring_allreduce needs Horovod ({error}); install it: scripts/setup.sh") from None
    return ring_allreduce


def make_options(config: RunConfig) -> Options:
    """Return what the strategy must know of the config."""
    return Options(
        num_servers=config.num_servers,
        wire_dtype=WIRE_DTYPES[config.wire_dtype],
        gradient_accumulation=config.gradient_accumulation,
        clip_norm=config.clip_norm,
        loss_scaling=config.precision == "fp16",
        chunk_bytes=config.chunk_bytes,
        bucket_bytes=config.bucket_bytes,
        fusion_threshold_bytes=config.fusion_threshold_bytes,
        cycle_time_s=config.cycle_time_s,
    )


def _agree(group: Group, config: RunConfig) -> None:
    """Refuse to run if the ranks were given different configs. Collective."""
    _raise_together(group, _first_difference(group.gather(config)))


def _first_difference(configs: list[RunConfig]) -> str | None:
    for rank, config in enumerate(configs):
        for name in RunConfig.model_fields:
            ours, theirs = getattr(configs[0], name), getattr(config, name)
            if ours != theirs:
                return f"{name}: rank 0 was given {ours!r}, rank {rank} {theirs!r}; start every rank alike"
    return None


def _raise_together(group: Group, problem: str | None) -> None:
    """Raise rank 0's problem on every rank. Collective."""
    problem = group.broadcast(problem)
    if problem:
        raise AgreedBadInput(problem)


def _together(group: Group, act: Callable[[], Any]) -> Any:
    """Do something that can be refused on some ranks only; raise the first refusal on all. Collective."""
    value, problem = None, None
    try:
        value = act()
    except BadInput as error:
        problem = str(error)
    problems = [f"{text} (rank {rank})" if rank else text for rank, text in enumerate(group.gather(problem)) if text]
    _raise_together(group, problems[0] if problems else None)
    return value


def _different_data(names: list[str]) -> str | None:
    others = [name for name in names if name != names[0]]
    return f"data: the workers read different tokens: {names[0]} and {others[0]}" if others else None


def _run(config: RunConfig, placement: Placement, group: Group) -> Result | None:
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    strategy = create(config.strategy, group, make_options(config))
    device = _together(group, lambda: pick_device(config, placement, strategy))
    corpus = _together(group, lambda: None if strategy.is_server else data.load(config))
    names = [name for name in group.gather(corpus.name if corpus else None) if name]
    _raise_together(group, _different_data(names))
    model = build_model(config, device)
    module = strategy.prepare(model, build_optimizer(config, model))
    group.barrier()
    cpu_before = summary.cpu_s()
    if strategy.is_server:
        strategy.serve()
        steps = []
    else:
        steps = list(train(config, module, strategy, corpus, device))
    cpu_s = summary.cpu_s() - cpu_before
    strategy.close()
    reports = group.gather(_report(config, strategy, steps, cpu_s))
    result = None
    if group.rank == 0:
        result = _result(config, started_at, strategy, reports, model, corpus, device)
    group.barrier()
    return result


def pick_device(config: RunConfig, placement: Placement, strategy: Strategy) -> torch.device:
    """Return where this rank computes: a GPU per local rank, the CPU, or nowhere (a server keeps no model)."""
    if strategy.is_server:
        return torch.device("meta")
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput(f"device: no CUDA device on {platform.node()}; use --device cpu")
    device = torch.device("cuda", placement.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _report(config: RunConfig, strategy: Strategy, steps: list[StepRecord], cpu_s: float) -> RankReport:
    counters = strategy.counters
    per_step = {name: None if n is None else n / config.total_steps for name, n in vars(counters).items()}
    return RankReport(
        host=platform.node(),
        cores=frozenset(os.sched_getaffinity(0)),
        is_server=strategy.is_server,
        steps=steps,
        volume=Volume(**per_step),  # type: ignore[arg-type]  # bytes are always counted
        cpu_s=cpu_s,
        peak_memory_bytes=summary.peak_memory_bytes(),
    )


def _result(
    config: RunConfig, started_at: str, strategy: Strategy, reports: list[RankReport],
    model: GPT, corpus: data.Corpus, device: torch.device,
) -> Result:  # fmt: skip
    """Put rank 0's record together, the equivalence check and the held-out loss included."""
    steps = [step for report in reports for step in report.steps]
    weights = equivalence.snapshot(model)
    timing = summary.timing(config, reports)
    numbers = {
        **timing, **summary.losses(reports), **summary.resources(reports),
        "num_nodes": len({report.host for report in reports}),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "held_out_loss": held_out_loss(config, model, corpus, device),
        "mfu": _mfu(config, timing["tokens_per_s"], device),
        "allreduce_algorithm": strategy.allreduce_algorithm,
    }  # fmt: skip
    verdict = None
    if config.check_equivalence and config.strategy != "independent":
        verdict = equivalence.compare(config, weights, *equivalence.reference_weights(config, corpus, device))
        numbers |= {"equivalence_error": verdict.error, "equivalence_bound": verdict.bound}
    passed = verdict is None or verdict.passed
    servers = [report.volume for report in reports if report.is_server and report.volume]
    record = RunRecord(
        run_id=run_id(config, 0), cell=config.digest(), repeat=0, started_at=started_at,
        status="ok" if passed else "invalid", reason="" if passed else "trained another model than one process",
        environment=environment.digest(environment.collect()),
        labels=summary.labels(config, reports, strategy.allreduce_algorithm),
        config=config, summary=Summary.model_validate(numbers), ledger=make_ledger(config, steps, servers),
    )  # fmt: skip
    return Result(record, steps, weights)


def _mfu(config: RunConfig, tokens_per_s: float | None, device: torch.device) -> float | None:
    peak = config.peak_flops_per_s or peak_flops_per_s(device, config.precision)
    if peak is None or tokens_per_s is None:
        return None
    return model_flops_utilization(tokens_per_s / config.num_workers, config.gpt, peak)


def finish(result: Result, out: Path | None, save_parameters: Path | None) -> int:
    """Write what was asked for, print one line, and return the exit code (rank 0 only)."""
    record, config = result.record, result.record.config
    if save_parameters:
        torch.save(result.weights, save_parameters)
    if out:
        write_folder(out, result)
    found = record.summary
    assert found is not None
    servers = f" + {config.num_servers} servers" if config.num_servers else ""
    line = (
        f"{config.strategy}, {config.num_workers} workers{servers}, {config.precision}: "
        f"{found.tokens_per_s:,.0f} tokens/s, loss {found.first_loss:.4f} -> {found.final_loss:.4f}"
    )
    if found.equivalence_error is not None:
        line += f", equivalence {found.equivalence_error:.2g} of at most {found.equivalence_bound:.2g}"
    print(" ".join([line, *(f"[{label}]" for label in record.labels)]), flush=True)
    if record.status != "ok":
        print(f"psring: {record.status}: {record.reason}", file=sys.stderr, flush=True)
    return 0 if record.status == "ok" else 1


def write_folder(out: Path, result: Result) -> None:
    """Write a results folder that holds this one run."""
    values = result.record.config.model_dump(mode="json", exclude_defaults=True)
    records.write_whole(out / "sweep.yaml", yaml.safe_dump({"grid": [values]}, sort_keys=False))
    records.write_json(out / "environment.json", environment.collect())
    records.write_steps(out, result.record.run_id, result.steps)
    records.append(out, result.record)


def _end_everyone(placement: Placement) -> NoReturn:
    """Say which rank failed and why, then end the whole run: nobody waits for a rank that is gone."""
    traceback.print_exc()
    kind, error = sys.exc_info()[:2]
    name = kind.__name__ if kind else "error"
    print(f"psring: rank {placement.rank} on {platform.node()} failed: {name}: {error}", file=sys.stderr, flush=True)
    if placement.launcher == "mpirun":
        from mpi4py import MPI

        time.sleep(FLUSH_S)  # let the line above leave first
        MPI.COMM_WORLD.Abort(1)
    os._exit(1)
