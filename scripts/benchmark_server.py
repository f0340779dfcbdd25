"""Compare the parameter server's step with the lower bound of its links, on emulated nodes (needs root).

    python scripts/benchmark_server.py [--repeats 5] [--out DIR] [--only colocated] [--set schedule=priority]

Each row is a placement of servers. The lower bound of a step, with M bytes of gradients (gpt-mini in fp32) and B the
TCP goodput of a link, its rate times 1448/1514, is: dedicated max(M/B, W·M/(S·B)); colocated 2(n-1)/n·M/B; mixed
2n(n-1)/(n²+kn-2k)·M/B; with emulated compute t_f + max(t_b, the above). Rows are interleaved; the launch is the sample.
Prints the duplex factor φ over all launches, then per row the median over valid launches of step / lower bound and its
95 % interval.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from pathlib import Path

from rich.console import Console

from bench import links, records
from bench.config import BadInput, RunConfig, make_config
from bench.intervals import median_interval
from bench.nodes import layout
from bench.sweep.file import Sweep
from bench.sweep.run import run_sweep

ROWS: list[tuple[dict[str, object], float]] = [
    ({"num_workers": 3, "num_servers": 1}, 1.12),
    ({"num_workers": 5, "num_servers": 3}, 1.15),
    ({"num_workers": 4, "num_servers": 4}, 1.15),
    ({"num_workers": 4, "placement": "colocated"}, 1.15),
    ({"num_workers": 4, "num_servers": 2, "placement": "mixed"}, 1.20),
    ({"num_workers": 4, "num_servers": 4, "compute": "emulated", "emulated_forward_s": 0.1,
      "emulated_backward_s": 0.2}, 1.15),
]  # fmt: skip
COMMON = {"strategy": "parameter_server", "model": "gpt-mini", "compute": "none", "warmup_steps": 4, "steps": 8}


def bound_s(config: RunConfig, rate: float) -> float:
    """Return the lower bound of a step, seconds, on links of `rate` bits per second."""
    n, k = config.num_workers, config.num_servers
    copies = {
        "dedicated": max(1.0, n / k) if k else 0.0,
        "colocated": 2 * (n - 1) / n,
        "mixed": 2 * n * (n - 1) / (n * n + k * n - 2 * k),
    }[config.placement]
    communication_s = copies * config.wire_bytes / (rate / 8 * layout.PAYLOAD_SHARE)
    return (config.emulated_forward_s or 0.0) + max(config.emulated_backward_s or 0.0, communication_s)


def main() -> None:
    """Parse the flags and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--link", default="200mbit")
    parser.add_argument("--out", type=Path, help="results folder; with the same one again, only what is missing is run")
    parser.add_argument("--only", default="", help="rows whose description contains this")
    parser.add_argument("--set", nargs="*", default=[], metavar="KNOB=VALUE", help="knobs for all rows")
    arguments = parser.parse_args()
    try:
        measure(arguments)
    except BadInput as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def measure(arguments: argparse.Namespace) -> None:
    """Run what is missing, print each row."""
    knobs = {**COMMON, "link": arguments.link, **dict(knob.partition("=")[::2] for knob in arguments.set)}
    cells = {make_config({**knobs, **row}, "--set"): target for row, target in ROWS}
    cells = {config: target for config, target in cells.items() if arguments.only in describe(config)}
    grid = [config.model_dump(exclude_defaults=True) for config in cells]
    sweep = Sweep.model_validate({"grid": grid, "repeats": arguments.repeats, "slowdown": 1})
    with tempfile.TemporaryDirectory() as folder:
        out = arguments.out or Path(folder, "out")
        with contextlib.suppress(KeyboardInterrupt):  # show the launches so far
            run_sweep(sweep, "benchmark", out, Console(stderr=True))
        found = records.read(out)
    factors = [record.summary.duplex_factor for record in found if record.summary]
    show("duplex factor", [factor for factor in factors if factor], "")
    for config, target in cells.items():
        bound = bound_s(config, links.parse_rate(arguments.link))
        of_row = [record for record in found if record.config.digest() == config.digest()]
        ratios = [record.summary.step_s / bound for record in of_row if record.summary and record.status == "ok"]
        met = ratios and statistics.median(ratios) <= target
        verdict = "met" if met else "MISSED" if ratios else "no valid launch"
        invalid = "".join(f"; invalid: {record.reason}" for record in of_row if record.status != "ok")
        show(describe(config), ratios, f", of {bound:.3f} s, at most {target}: {verdict}{invalid}")


def describe(config: RunConfig) -> str:
    """Return a row's name."""
    compute = f", t_f {config.emulated_forward_s} s, t_b {config.emulated_backward_s} s"
    return f"{config.placement} W={config.num_workers} S={config.num_servers}" + compute * (config.compute != "none")


def show(name: str, samples: list[float], verdict: str) -> None:
    """Print a median with its interval."""
    found = median_interval(samples)
    print(f"{name:50} {found.value:.3f} ({found.low:.3f}-{found.high:.3f}), n={len(samples)}{verdict}", flush=True)


if __name__ == "__main__":
    main()
