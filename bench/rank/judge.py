"""Whether a run's numbers may be compared: the gate judges the trained model, the guard what disturbed the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.config import RunConfig
from bench.ledger import Ledger
from bench.nodes import guard, limits
from bench.rank import equivalence, numbers
from bench.rank.convergence import convergence, convergence_failure
from bench.rank.data import Corpus
from bench.rank.numbers import RankReport
from bench.rank.rehearsal import Rehearsal


@dataclass(frozen=True)
class Judgement:
    """What a check found, as columns of the record, and why the run is invalid; no reason: it is valid."""

    columns: Mapping[str, float | bool | None] = field(default_factory=dict)
    reason: str = ""


def judge_model(
    config: RunConfig, reports: Sequence[RankReport], held_out_loss: float | None, rehearsals: Sequence[Rehearsal],
    corpus: Corpus, device: torch.device,
) -> Judgement:  # fmt: skip
    """Compare a run with one process: the weights that its rehearsals trained, or how far its loss fell.

    Only a cell's first repeat is judged (its reports have checksums); the others train the same model.
    """
    checksums = [report.checksum for report in reports if not report.is_server]
    if set(checksums) == {None}:
        return Judgement()
    size = config.model_parallel_size  # every size-th worker holds the same part of the model
    num_models = max(len(set(checksums[part::size])) for part in range(size))
    failure = equivalence.different_models(num_models) if config.workers_agree else ""
    columns: dict[str, float | bool | None]
    if not config.exact:
        assert held_out_loss is not None  # a gate that compares losses needs held-out batches; RunConfig checks it
        fallen = convergence(config, held_out_loss, corpus, device)
        columns = {"convergence": fallen}
        failure = failure or convergence_failure(fallen)
    else:
        verdict = equivalence.compare(rehearsals, corpus, device)
        error = numbers.finite_or_none(verdict.error)
        columns = {"equivalence_error": error, "equivalence_bound": verdict.bound}
        failure = failure or verdict.failure()
    return Judgement({**columns, "gate_passed": not failure}, failure)


def judge_loss(config: RunConfig, reports: Sequence[RankReport], held_out_loss: float | None) -> Judgement:
    """Return since when the loss is infinite or NaN; nothing if it never is, or if the run may."""
    if config.allow_nonfinite_loss:
        return Judgement()
    return Judgement(reason=numbers.nonfinite_loss(config, reports, held_out_loss))


def judge_surroundings(config: RunConfig, reports: Sequence[RankReport], ledger: Ledger) -> Judgement:
    """Return what others did to the machine and to the emulated links; ranks on several machines are not judged."""
    evidence = [report.evidence for report in reports if report.evidence]
    if not evidence and len({report.host for report in reports}) > 1:
        return Judgement()
    used = [report.cpu_use for report in reports]
    columns: dict[str, Any] = guard.cpu_columns(used)
    columns |= guard.link_columns(evidence, config.total_steps) if evidence else {}
    columns["disturbance"] = guard.disturbance(
        used, columns, numbers.steps_s(reports), _above_shortest(config, reports)
    )
    ratios = ledger.wire_ratios(), ledger.header_shares()
    return Judgement(columns, guard.rejection(columns, config.max_foreign_cpu_share, *ratios))


def _above_shortest(config: RunConfig, reports: Sequence[RankReport]) -> float:
    """Return which share of time a run took more than its links and its compute need; infinite if that is not known."""
    shortest_s = limits.shortest_step_s(config, reports[0].observed.allreduce_algorithm)
    if not shortest_s:
        return math.inf
    return config.tokens_per_step / (numbers.tokens_per_s(config, reports) * shortest_s) - 1
