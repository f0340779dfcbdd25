"""Find the best message size on this network: every size is measured in rounds, the chosen one is written to a file."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from bench import environment, files, records
from bench.config import BadInput, RunConfig, read_tuned
from bench.intervals import Estimate, median_interval
from bench.mpi import RankInfo
from bench.records import LABELS, PlannedRun, RunRecord
from bench.sweep.file import Sweep
from bench.sweep.run import run_sweep
from strategies import catalogue

BUDGET_S = 90.0  # after the first round, none begins that would end later
ROUNDS = 5
NOT_A_NETWORK = {"loopback", "shared_memory"}  # labels of runs whose messages crossed memory
STEPS = {"steps": 4, "warmup_steps": 2, "eval_batches": 0}

# Maps configs and the round's number to their step_s (None for a run that is not ok), and the round's duration in
# seconds; the same on every rank.
Round = Callable[[Sequence[RunConfig], int], tuple[list[float | None], float]]


def tune(config: RunConfig, rank_info: RankInfo, out: Path, console: Console) -> None:
    """Measure every size for about BUDGET_S, print them, add the chosen one to the file `out`. Collective.

    Without a launcher, each round starts its own ranks. BadInput if there is nothing to tune.
    """
    knob, candidates = make_candidates(config)
    launched = rank_info.launcher != "none" or config.world_size == 1
    if launched and knob in config.kind.process_knobs:
        raise BadInput(
            f"tune: {config.strategy} reads {knob} once per process; without mpirun, psring tune starts its own: "
            f"psring tune --num-workers {config.num_workers} --strategy {config.strategy} ..."
        )
    if rank_info.rank == 0:
        files.check_writable(out)
        known = read_tuned(str(out)) if out.exists() else {}
        environment.collect()  # now: a run sets its libraries' variables
    notes = Notes()
    samples = measure(candidates, round_on_ranks(rank_info, notes) if launched else round_with_launches(notes))
    if rank_info.rank == 0:
        found = intervals(knob, candidates, samples)
        entry = make_entry(config, knob, found, max(map(len, samples)))
        files.write_whole(out, yaml.safe_dump({**known, config.strategy: entry}, sort_keys=False))
        show(config, knob, found, console)
        remark = "" if choose(knob, found) == fastest(found) else ", the default: no size is faster beyond the noise"
        text = f"{out}: --tuned {out} sets {knob}: {choose(knob, found)} for {config.strategy}{remark}"
        left_out = [getattr(candidate, knob) for candidate in candidates if getattr(candidate, knob) not in found]
        for line in (text, *notes.describe(left_out)):
            console.print(line, markup=False, soft_wrap=True)


@dataclass
class Notes:
    """What runs say beside their times: their labels, how many ran, and the reasons of those that were invalid."""

    labels: set[str] = field(default_factory=set)
    runs: int = 0
    invalid: list[str] = field(default_factory=list)

    def add(self, record: RunRecord) -> None:
        """Add what a run says."""
        self.labels.update(record.labels)
        self.runs += 1
        if record.status == "invalid":
            self.invalid.append(record.reason)

    def describe(self, left_out: Sequence[int]) -> list[str]:
        """Return the lines that the user must know; `left_out` are the sizes without a valid run."""
        lines = [
            f"{label}: {LABELS[label]}; tune on the network that will train"
            for label in sorted(self.labels & NOT_A_NETWORK)
        ]
        if self.invalid:
            reason, _ = Counter(self.invalid).most_common(1)[0]
            sizes = f"; no run of size {', '.join(map(str, left_out))} was valid" if left_out else ""
            lines.append(f"{len(self.invalid)} of {self.runs} runs do not count{sizes}: {reason}")
        return lines


def make_candidates(config: RunConfig) -> tuple[str, list[RunConfig]]:
    """Return the knob and a config per size: all sizes that split the gradients, and the smallest that does not."""
    knob, sizes = config.kind.tunes, config.kind.sizes
    if not knob:
        others = ", ".join(name for name, entry in catalogue.CATALOGUE.items() if entry.tunes)
        raise BadInput(f"tune: {config.strategy} has no size to tune; choose one of {others}")
    default = RunConfig.model_fields[knob].default
    if getattr(config, knob) != default:
        raise BadInput(f"tune: {knob} is the knob to be tuned; leave it out")
    ordered = sorted({*sizes, default})
    unsplit = [size for size in ordered if size >= config.wire_bytes][:1]
    chosen = [size for size in ordered if size < config.wire_bytes] + unsplit
    return knob, [config.model_copy(update={**STEPS, "tuned": None, knob: size}) for size in chosen]


def measure(candidates: Sequence[RunConfig], round_of: Round) -> list[list[float]]:
    """Return each candidate's step_s, one per `ok` run; the order rotates from round to round. Collective."""
    samples: list[list[float]] = [[] for _ in candidates]
    elapsed_s = 0.0
    for number in range(ROUNDS):
        order = [(number + place) % len(candidates) for place in range(len(candidates))]
        found, round_s = round_of([candidates[index] for index in order], number)
        for index, step_s in zip(order, found, strict=True):
            if step_s is not None:
                samples[index].append(step_s)
        elapsed_s += round_s
        if elapsed_s + round_s > BUDGET_S:
            break
    return samples


def intervals(knob: str, candidates: Sequence[RunConfig], samples: Sequence[Sequence[float]]) -> dict[int, Estimate]:
    """Return the median step_s by size, without sizes that have no `ok` run; SystemExit if none has one."""
    pairs = zip(candidates, samples, strict=True)
    found = {getattr(config, knob): median_interval(step_s) for config, step_s in pairs if step_s}
    if not found:
        raise SystemExit("psring: tune: no run was valid; the emulated nodes share this machine with other work")
    return found


def round_on_ranks(rank_info: RankInfo, notes: Notes) -> Round:
    """Return a round on the ranks that a launcher has started, all in the same processes; adds to the notes."""
    from bench.rank import group
    from bench.rank.run import Result, run_all

    def run(configs: Sequence[RunConfig], number: int) -> tuple[list[float | None], float]:
        found: list[float | None] = []
        began = time.monotonic()
        planned = [PlannedRun(config=config, repeat=number) for config in configs]

        def keep(result: Result) -> None:
            notes.add(result.record)
            found.append(step_s_of(result.record))

        run_all(planned, rank_info, keep)
        ranks = group.join([configs[0].strategy], rank_info, configs[0])
        result: tuple[list[float | None], float] = ranks.broadcast((found, time.monotonic() - began))
        return result

    return run


def round_with_launches(notes: Notes) -> Round:
    """Return a round whose ranks are started for it, as `psring sweep` starts them; adds to the notes."""

    def run(configs: Sequence[RunConfig], number: int) -> tuple[list[float | None], float]:
        began = time.monotonic()
        sweep = Sweep.model_validate({"grid": [config.model_dump(exclude_defaults=True) for config in configs]})
        with tempfile.TemporaryDirectory() as folder:
            done = run_sweep(sweep, "tune", Path(folder) / f"round-{number}", Console(quiet=True))
        for record in done:
            notes.add(record)
        found = {record.config: step_s_of(record) for record in done}
        return [found[config] for config in configs], time.monotonic() - began

    return run


def step_s_of(record: RunRecord) -> float | None:
    """Return the median step_s of a run, None if the run is invalid; a run that failed ends the command."""
    if record.summary is None:
        raise SystemExit(f"psring: tune: {record.config.strategy} {record.status}: {record.reason}")
    return record.summary.step_s if record.status == "ok" else None


def make_entry(config: RunConfig, knob: str, found: dict[int, Estimate], num_rounds: int) -> dict[str, Any]:
    """Return a strategy's entry of the file: the chosen size, and where and how it was measured."""
    current = environment.collect()
    given = config.model_dump(mode="json", exclude_defaults=True)
    return {
        "knobs": {knob: choose(knob, found)},
        "tuned_at": records.now(),
        "environment": {"digest": environment.digest(current), **current},
        "config": {name: value for name, value in given.items() if name not in ("strategy", "tuned")},
        "rounds": num_rounds,
        "step_s": {str(size): round(step.value, 6) for size, step in found.items()},
    }


def choose(knob: str, found: dict[int, Estimate]) -> int:
    """Return the fastest size if its interval lies below that of the default size, else the default."""
    default = RunConfig.model_fields[knob].default
    best = fastest(found)
    return best if default not in found or found[best].high < found[default].low else default


def fastest(found: dict[int, Estimate]) -> int:
    """Return the size with the smallest median step_s."""
    return min(found, key=lambda size: found[size].value)


def show(config: RunConfig, knob: str, found: dict[int, Estimate], console: Console) -> None:
    """Print every size with the median of its step_s over rounds and its 95 % interval."""
    table = Table(knob, "step, ms", "95 % interval, ms", "over the fastest", title=config.strategy)
    best = found[fastest(found)].value
    for size, step in found.items():
        interval = f"{step.low * 1e3:.2f}-{step.high * 1e3:.2f}"
        default = " (default)" if size == RunConfig.model_fields[knob].default else ""
        table.add_row(f"{size}{default}", f"{step.value * 1e3:.2f}", interval, f"{step.value / best:.3f}")
    console.print(table)
