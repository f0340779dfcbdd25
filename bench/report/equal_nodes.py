"""The four figures of every strategy at equal nodes: latency, throughput, communication volume, resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from bench.report.cells import batch_per_worker
from bench.report.loss import bytes_of_all_ranks
from bench.report.panels import SIZE
from bench.report.tables import BYTES, SECONDS, Columns, Row, in_units, interval, number, plain
from strategies import catalogue

TITLE = "Latency, throughput, volume and resources"
TEXT = (
    "Every strategy at the largest number of nodes that most of them ran on; dedicated servers count as nodes. Latency "
    "is the time of a step; throughput is that of all workers, and per node; volume is what all ranks send in a step; "
    "resources are CPU seconds per step and peak memory, of a worker and of a server, and the energy of a step where "
    "the processors count it (RAPL). Peak memory is the whole process's, libraries included; emulated layers hold no "
    "numbers, so that theirs is not compared with DDP's."
)
COLUMNS: Columns = {
    "nodes": lambda row: str(int(row[SIZE])),
    **in_units(SECONDS, step="step_s", step_p95="step_s_p95"),
    "tokens/s": lambda row: interval(row, "tokens_per_s"),
    "tokens/s per node": lambda row: number(row["tokens_per_s"] / row[SIZE]),
    **in_units(
        BYTES, sent_by_all="bytes_of_all_ranks", worker_memory="worker_peak_memory_bytes",
        server_memory="server_peak_memory_bytes",
    ),
    "worker memory ÷ DDP's": lambda row: number(row["memory_ratio"]),
    **in_units(SECONDS, worker_CPU="worker_cpu_per_step_s", server_CPU="server_cpu_per_step_s"),
    **plain(**{"energy,_J": "energy_per_step_j"}),
}  # fmt: skip
BESIDE = catalogue.DDP.name  # the strategy whose memory that of the others is compared with: each worker holds all


def rows_at_equal_nodes(summary: pd.DataFrame, total_steps: Mapping[str, int]) -> Sequence[Row]:
    """Return the ok rows of the table, the fastest first; none for a setting in which no two cells have equal nodes.

    `total_steps` has every cell's steps, warm-up included.
    """
    ok = summary[summary["status"] == "ok"].copy()
    if ok.empty:
        return []
    steps = ok["cell"].map(total_steps)
    ok["bytes_of_all_ranks"] = bytes_of_all_ranks(ok)
    for role in ("worker", "server"):
        ok[f"{role}_cpu_per_step_s"] = ok[f"{role}_cpu_s"] / steps
    ok["energy_per_step_j"] = ok["energy_j"] / steps
    chosen = map(_with_memory_ratio, at_equal_nodes(ok))
    return [row for group in chosen for row in group.sort_values("tokens_per_s", ascending=False).to_dict("records")]


def _with_memory_ratio(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with their workers' peak memory over BESIDE's; blank without it, and where layers hold no numbers."""
    real = cells["worker_peak_memory_bytes"].where(cells["compute"] == "real")
    return cells.assign(memory_ratio=real / real[cells["strategy"] == BESIDE].median())


def at_equal_nodes(cells: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the cells to compare, by setting: place, precision and sequences per worker."""
    setting = [cells["place"], cells["precision"], batch_per_worker(cells)]
    return [_at_most_common_size(group) for _, group in cells.groupby(setting, sort=False)]


def _at_most_common_size(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of the size at which most strategies ran, of several the largest; none if that is one cell."""
    counts = cells[cells[SIZE] > 1].groupby(SIZE)["strategy"].agg(["nunique", "size"])
    counts = counts[counts["size"] > 1]
    if counts.empty:
        return cells.iloc[:0]
    best = counts[counts["nunique"] == counts["nunique"].max()].index.max()
    chosen: pd.DataFrame = cells[cells[SIZE] == best]
    return chosen
