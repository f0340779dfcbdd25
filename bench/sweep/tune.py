"""How large messages should be on this network: sizes are tried by turns, the fastest is kept for later runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from bench import environment, records
from bench.config import BadInput, RunConfig, read_tuned
from bench.intervals import Estimate, median_interval
from bench.mpi import RankInfo
from bench.records import PlannedRun, RunRecord
from bench.sweep.file import Sweep
from bench.sweep.run import run_sweep
from strategies import catalogue

BUDGET_S = 90.0  # no round begins that would end later; the first one is always run
ROUNDS = 5
STEPS = {"steps": 4, "warmup_steps": 2, "eval_batches": 0}

# From configs and the round's number to their step_s, and how long the round took, seconds; the same on every rank.
Round = Callable[[Sequence[RunConfig], int], tuple[list[float], float]]


def tune(config: RunConfig, rank_info: RankInfo, out: Path, console: Console) -> None:
    """Try every size for BUDGET_S, write the fastest to `out` beside what is there, print all. Collective.

    Without a launcher it starts one itself for every size and round.
    """
    knob, candidates = make_candidates(config)
    here = rank_info.launcher != "none" or config.world_size == 1
    if here and knob in config.kind.process_knobs:
        raise BadInput(
            f"tune: {config.strategy} reads {knob} once per process; without mpirun, psring tune starts its own: "
            f"psring tune --num-workers {config.num_workers} --strategy {config.strategy} ..."
        )
    if rank_info.rank == 0:
        records.check_writable(out)
        known = read_tuned(str(out)) if out.exists() else {}
    samples = measure(candidates, rounds_here(rank_info) if here else launched)
    if rank_info.rank == 0:
        found = {getattr(each, knob): median_interval(step_s) for each, step_s in zip(candidates, samples, strict=True)}
        entry = make_entry(config, knob, found, len(samples[0]))
        records.write_whole(out, yaml.safe_dump({**known, config.strategy: entry}, sort_keys=False))
        show(config, knob, found, console)
        console.print(f"{out}: --tuned {out} gives {config.strategy} {knob}: {fastest(found)}", soft_wrap=True)


def make_candidates(config: RunConfig) -> tuple[str, list[RunConfig]]:
    """Return the knob, and a config per size: all that cut the gradients, and the smallest that does not."""
    knob, sizes = config.kind.tunes, config.kind.sizes
    if not knob:
        others = ", ".join(name for name, entry in catalogue.CATALOGUE.items() if entry.tunes)
        raise BadInput(f"tune: {config.strategy} has no size to tune; choose one of {others}")
    default = RunConfig.model_fields[knob].default
    if getattr(config, knob) != default:
        raise BadInput(f"tune: {knob} is what it looks for; leave it out")
    ordered = sorted({*sizes, default})
    whole = [size for size in ordered if size >= config.wire_bytes][:1]
    kept = [size for size in ordered if size < config.wire_bytes] + whole
    return knob, [config.model_copy(update={**STEPS, "tuned": None, knob: size}) for size in kept]


def measure(candidates: Sequence[RunConfig], round_of: Round) -> list[list[float]]:
    """Return each candidate's step times, one per round; the order within a round turns. Collective."""
    samples: list[list[float]] = [[] for _ in candidates]
    elapsed_s = 0.0
    for number in range(ROUNDS):
        order = [(number + place) % len(candidates) for place in range(len(candidates))]
        found, round_s = round_of([candidates[index] for index in order], number)
        for index, step_s in zip(order, found, strict=True):
            samples[index].append(step_s)
        elapsed_s += round_s
        if elapsed_s + round_s > BUDGET_S:
            break
    return samples


def rounds_here(rank_info: RankInfo) -> Round:
    """Rounds on the ranks that a launcher has started, all in the same processes."""
    from bench.rank import group
    from bench.rank.run import run_all

    def run(configs: Sequence[RunConfig], number: int) -> tuple[list[float], float]:
        found: list[float] = []
        began = time.monotonic()
        planned = [PlannedRun(config=config, repeat=number) for config in configs]
        run_all(planned, rank_info, lambda result: found.append(step_s_of(result.record)))
        ranks = group.join([configs[0].strategy], rank_info, configs[0])
        rank_0_saw: tuple[list[float], float] = ranks.broadcast((found, time.monotonic() - began))
        return rank_0_saw

    return run


def launched(configs: Sequence[RunConfig], number: int) -> tuple[list[float], float]:
    """A round whose ranks are started for it, as `psring sweep` starts them."""
    began = time.monotonic()
    sweep = Sweep.model_validate({"grid": [config.model_dump(exclude_defaults=True) for config in configs]})
    with tempfile.TemporaryDirectory() as folder:
        done = run_sweep(sweep, "tune", Path(folder) / f"round-{number}", Console(quiet=True))
    found = {record.config: step_s_of(record) for record in done}
    return [found[config] for config in configs], time.monotonic() - began


def step_s_of(record: RunRecord) -> float:
    """The median step of a run; one that failed ends the command."""
    if record.summary is None:
        raise SystemExit(f"psring: tune: {record.config.strategy} {record.status}: {record.reason}")
    return record.summary.step_s


def make_entry(config: RunConfig, knob: str, found: dict[int, Estimate], num_rounds: int) -> dict[str, Any]:
    """What the file says of one strategy: the fastest size, and where and how it was found."""
    here = environment.collect()
    asked = config.model_dump(mode="json", exclude_defaults=True)
    return {
        "knobs": {knob: fastest(found)},
        "tuned_at": records.now(),
        "environment": {"digest": environment.digest(here), **here},
        "config": {name: value for name, value in asked.items() if name not in ("strategy", "tuned")},
        "rounds": num_rounds,
        "step_s": {size: round(step.value, 6) for size, step in found.items()},
    }


def fastest(found: dict[int, Estimate]) -> int:
    """The size of the shortest median step."""
    return min(found, key=lambda size: found[size].value)


def show(config: RunConfig, knob: str, found: dict[int, Estimate], console: Console) -> None:
    """Print every size with its step, median over rounds and 95 % interval."""
    table = Table(knob, "step, ms", "95 % interval, ms", "of the fastest", title=config.strategy)
    best = found[fastest(found)].value
    for size, step in found.items():
        interval = f"{step.low * 1e3:.2f}-{step.high * 1e3:.2f}"
        default = " (default)" if size == RunConfig.model_fields[knob].default else ""
        table.add_row(f"{size}{default}", f"{step.value * 1e3:.2f}", interval, f"{step.value / best:.3f}")
    console.print(table)
