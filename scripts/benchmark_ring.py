"""Compare psring's ring with its closed form and with Horovod's, on emulated nodes.

    python scripts/benchmark_ring.py --out results/ring [--num-nodes 4 8] [--link 200mbit] [--launches 5] [--steps 8]

A sweep: gpt-mini's gradients (10.9 MB in fp32), communication only, one worker per node, both rings in turn, each in
launches of its own (Horovod's thread also communicates between steps). Prints the median step over launches, its ratio
to 2(N-1)/N*M/B, B being the link's TCP goodput, and the ratio of the two rings, each with its 95 % interval. With the
same folder again, it runs what is missing and prints all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.config import BadInput, RunConfig
from bench.intervals import Estimate, median_interval
from bench.links import parse_rate
from bench.nodes.layout import PAYLOAD_SHARE
from bench.records import RunRecord, read
from bench.report.verdicts import unpaired
from bench.sweep.file import Sweep
from bench.sweep.run import run_sweep

RINGS = ("mpi_ring", "ring_allreduce")
TARGET = 1.10


def make_sweep(arguments: argparse.Namespace) -> Sweep:
    """Return the sweep of the two rings at every size, communication only."""
    knobs = {"segment_bytes": arguments.segment_bytes} if arguments.segment_bytes else {}
    rings = [{"strategy": name, **(knobs if name == "mpi_ring" else {})} for name in RINGS]
    return Sweep.model_validate({
        "defaults": {
            "model": arguments.model, "compute": "none", "optimizer": "sgd", "wire_dtype": arguments.wire_dtype,
            "steps": arguments.steps, "warmup_steps": 3, "eval_batches": 0,
        },
        "grid": [{**ring, "num_workers": arguments.num_nodes} for ring in rings],
        "repeats": arguments.launches,
        "slowdown": 1,
        "cluster": {"num_nodes": max(arguments.num_nodes), "link": arguments.link},
    })  # fmt: skip


def ideal_s(config: RunConfig) -> float:
    """Return 2(N-1)/N * M/B, seconds: a ring whose links are always full, without latency or arithmetic."""
    n, goodput = config.num_workers, parse_rate(str(config.link)) * PAYLOAD_SHARE / 8
    return 2 * (n - 1) / n * config.wire_bytes / goodput


def show(records: list[RunRecord], console: Console) -> None:
    """Print one row per size and ring."""
    table = Table("nodes", "ring", "n", "step, s", "closed form, s", "ratio", f"at most {TARGET}", "mpi_ring / Horovod")
    for size in sorted({record.config.num_workers for record in records}):
        steps: dict[str, list[float]] = {name: [] for name in RINGS}
        for record in records:
            if record.config.num_workers == size:
                ideal = ideal_s(record.config)
                steps[record.config.strategy] += [record.summary.step_s] if record.summary else []
        for name, samples in steps.items():
            step = median_interval(samples)
            ratio = Estimate(*(bound / ideal for bound in step))
            comparison = text(unpaired(samples, steps["ring_allreduce"]).interval) if name == "mpi_ring" else ""
            result = "met" if ratio.value <= TARGET else "MISSED" if samples else "no valid launch"
            verdict = result if name == "mpi_ring" else ""
            cells = (size, name, len(samples), text(step), f"{ideal:.4f}", text(ratio), verdict, comparison)
            table.add_row(*map(str, cells))
    console.print(table)


def text(estimate: Estimate) -> str:
    """Format a value and its interval."""
    return f"{estimate.value:.3f} ({estimate.low:.3f}-{estimate.high:.3f})"


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-nodes", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--link", default="200mbit")
    parser.add_argument("--model", default="gpt-mini")
    parser.add_argument("--wire-dtype", default="fp32")
    parser.add_argument("--segment-bytes", type=int)
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    console = Console(width=140)
    try:
        run_sweep(make_sweep(arguments), "benchmark_ring", arguments.out, console)
    except BadInput as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    show([record for record in read(arguments.out) if record.status == "ok"], console)


if __name__ == "__main__":
    main()
