"""Measure time, peak memory and page size of `psring report` on many runs.

    python scripts/benchmark_report.py [--runs 10000] [--keep DIR]

The runs are synthetic (tests/support/synthetic.py), with raw steps; the report is made in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))

from bench import records  # noqa: E402
from bench.processes import PSRING  # noqa: E402
from bench.sweep.file import cross_product  # noqa: E402
from tests.support.synthetic import demo_record, make_steps  # noqa: E402

COMMUNICATING: dict[str, Any] = {"num_workers": [1, 2, 4, 8, 16], "wire_dtype": ["fp32", "fp16"]}
STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "local", "num_workers": 1},
    {"strategy": "ring_allreduce", **COMMUNICATING},
    {"strategy": "ddp", **COMMUNICATING},
    {"strategy": "parameter_server", "num_servers": [1, 2, 4], **COMMUNICATING},
]
BATCH_SIZES = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]


def cells() -> Iterator[dict[str, Any]]:
    """Yield about two thousand cells: four strategies, five sizes, three precisions, twelve batch sizes."""
    for precision, batch_size in itertools.product(["fp32", "bf16", "fp16"], BATCH_SIZES):
        for block in STRATEGIES:
            yield from cross_product({"precision": precision, "batch_size": batch_size, "steps": 10, **block})


def write_runs(folder: Path, count: int) -> None:
    """Write a results folder of `count` runs, repeats outermost."""
    planned = itertools.islice(((repeat, cell) for repeat in itertools.count() for cell in cells()), count)
    with (folder / "runs.jsonl").open("w", encoding="utf-8") as file:  # records.append would fsync every line
        for repeat, cell in planned:
            record = demo_record(repeat, **cell)
            file.write(record.model_dump_json() + "\n")
            records.write_steps(folder, record.run_id, make_steps(record))


def measure(folder: Path) -> tuple[float, float, int]:
    """Make the report; return seconds, peak resident bytes of its process, bytes of the page."""
    started = time.perf_counter()
    with subprocess.Popen([*PSRING, "report", str(folder)], cwd=REPOSITORY,
                          stdout=subprocess.DEVNULL) as process:  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"psring report ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024, (folder / "report.html").stat().st_size


def main() -> None:
    """Write the runs, measure their report, print one line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="new folder to write to instead of a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_runs(folder, arguments.runs)
        seconds, memory, page = measure(folder)
    print(f"{arguments.runs} runs: {seconds:.1f} s, peak memory {memory / 1e9:.2f} GB, report.html {page / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
