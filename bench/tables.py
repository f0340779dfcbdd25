"""The sections of a report: tables for people, made from the summary table.

Numbers are rounded to three significant digits here and nowhere else; summary.csv keeps them whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from bench.config import GATE_STEPS
from bench.figures import curve_label, told_apart
from bench.records import LABELS

Row = Mapping[Any, Any]
Units = tuple[tuple[float, str], ...]
Columns = dict[str, Callable[[Row], str]]

BLANK = "—"
BYTES: Units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
SECONDS: Units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


class Table(NamedTuple):
    """A caption, the column heads, and rows of text."""

    caption: str
    head: list[str]
    rows: list[list[str]]


class Section(NamedTuple):
    """One heading of the report and what stands under it, in this order."""

    title: str
    text: str
    figure: str | None
    tables: list[Table]


def number(value: Any) -> str:
    """Three significant digits (12,300; 12.3; 0.00123), a dash for a blank."""
    if pd.isna(value):
        return BLANK
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.2e}"
    exponent = int(f"{value:.2e}".split("e")[1])
    return f"{round(value, 2 - exponent):,.{max(0, 2 - exponent)}f}"


def scaled(value: Any, units: Units) -> str:
    """A number in the largest unit of which it is at least one."""
    if pd.isna(value):
        return BLANK
    size, unit = next((pair for pair in units if abs(value) >= 0.9995 * pair[0]), units[-1])
    return f"{number(value / size)} {unit}" if value else "0"


def interval(row: Row, name: str) -> str:
    """12.3 (11.9–12.8), without the bracket where no interval is known."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return number(row[name]) + ("" if pd.isna(low) else f" ({number(low)}–{number(high)})")


def sections(summary: pd.DataFrame, drawn: list[str]) -> list[Section]:
    """Everything below the answer, in reading order; a figure only where it was drawn."""
    speed = table(summary, "Throughput and its witness, the loss", THROUGHPUT_COLUMNS)
    scaling = table(summary, "Speedup and efficiency", EFFICIENCY_COLUMNS)
    volume = table(summary, "Sent in one step", VOLUME_COLUMNS)
    phases = table(summary, "Phases of a step", PHASE_COLUMNS)
    resources = table(summary, "Resources", RESOURCE_COLUMNS)
    loss = table(summary, "Loss witness and equivalence gate", LOSS_COLUMNS)
    parts = [
        Section("Throughput", THROUGHPUT, "throughput", [speed]),
        Section("Scaling efficiency", EFFICIENCY, "scaling_efficiency", [scaling]),
        Section("Communication volume", VOLUME, "communication_volume", [volume]),
        Section("Where the time goes", PHASES, "step_time", [phases, resources]),
        Section("Precision and batch size", CROSS, None, [cross_table(summary)]),
        Section("Loss and equivalence", LOSS, None, [loss]),
        Section("Validity", VALIDITY, None, [label_table(summary), problem_table(summary)]),
    ]
    return [part if part.figure in drawn else part._replace(figure=None) for part in parts]


def table(summary: pd.DataFrame, caption: str, columns: Columns) -> Table:
    """A table of cells: what names a cell, then the given columns. A failed cell keeps its row."""
    every = {**cell_names(summary), **columns}
    rows = [[column(row) for column in every.values()] for row in summary.to_dict("records")]
    return Table(caption, list(every), rows)


def cell_names(summary: pd.DataFrame) -> Columns:
    """The columns that tell a reader which cell a row is."""
    fields = ["strategy", "num_servers", *told_apart(summary)]
    return {
        "strategy": lambda row: curve_label({field: row[field] for field in fields}),
        "workers": lambda row: str(row["num_workers"]),
        "precision": lambda row: str(row["precision"]),
        "batch": lambda row: str(row["batch_size"]),
    }


def plain(**names: str) -> Columns:
    """Columns of numbers as they are: head = field."""
    return {head.replace("_", " "): partial(_number_of, field) for head, field in names.items()}


def in_units(units: Units, **names: str) -> Columns:
    """Columns of numbers with a unit: head = field."""
    return {head.replace("_", " "): partial(_size_of, field, units) for head, field in names.items()}


def _number_of(field: str, row: Row) -> str:
    return number(row[field])


def _size_of(field: str, units: Units, row: Row) -> str:
    return scaled(row[field], units)


def label_table(summary: pd.DataFrame) -> Table:
    """Every known label, what it means, and how many cells carry it."""
    counts = label_counts(summary)
    rows = [[label, meaning, f"{counts[label]} of {len(summary)}"] for label, meaning in LABELS.items()]
    return Table("Labels", ["label", "meaning", "cells"], rows)


def label_counts(summary: pd.DataFrame) -> dict[str, int]:
    """How many rows carry each known label."""
    carried = summary["labels"].str.split().explode().value_counts()
    return {label: int(carried.get(label, 0)) for label in LABELS}


def problem_table(summary: pd.DataFrame) -> Table:
    """Every cell that lost a launch, and why."""
    bad = summary[(summary["status"] != "ok") | (summary["reason"] != "")]
    names = cell_names(summary)
    rows = [
        [*(name(row) for name in names.values()), str(row["status"]), str(row["n"]), str(row["reason"])]
        for row in bad.to_dict("records")
    ]
    return Table("Cells without numbers, or with fewer", [*names, "status", "ok launches", "reason"], rows)


def cross_table(summary: pd.DataFrame) -> Table:
    """Tokens per second of every curve and number of workers, beside each other per precision and batch."""
    settings = list(dict.fromkeys(zip(summary["precision"], summary["batch_size"], strict=True)))
    names = cell_names(summary)
    places: dict[tuple[str, str], dict[tuple[str, int], str]] = {}
    for row in summary.to_dict("records"):
        place = places.setdefault((names["strategy"](row), names["workers"](row)), {})
        speed = interval(row, "tokens_per_s") if row["status"] == "ok" else str(row["status"])
        place[row["precision"], row["batch_size"]] = speed
    head = ["strategy", "workers", *(f"{precision}, batch {batch}" for precision, batch in settings)]
    rows = [[*place, *(found.get(one, BLANK) for one in settings)] for place, found in places.items()]
    return Table("Tokens per second by precision and batch size", head, rows)


def _agreement(row: Row) -> str:
    return {True: "yes", False: "NO"}.get(row["ledger_agrees"], BLANK)


def _gate(row: Row) -> str:
    if pd.isna(row["equivalence_error"]):
        return "not checked"
    return "passed" if row["equivalence_error"] <= row["equivalence_bound"] else "FAILED"


THROUGHPUT = (
    "Tokens per second is all work of all workers over their common time. A dedicated server is a rank that "
    "does not train, so the rate is also given per rank. The final loss says whether speed bought progress. "
    "n counts the ok launches."
)
THROUGHPUT_COLUMNS: Columns = {
    "n": lambda row: str(row["n"]),
    "tokens/s": lambda row: interval(row, "tokens_per_s"),
    **plain(final_loss="final_loss"),
    "tokens/s per worker": lambda row: number(row["tokens_per_s"] / row["num_workers"]),
    "tokens/s per rank": lambda row: number(row["tokens_per_s"] / row["world_size"]),
    **in_units(SECONDS, step="step_s", step_p95="step_s_p95"),
    "status": lambda row: str(row["status"]),
    "labels": lambda row: ", ".join(str(row["labels"]).split()),
}
EFFICIENCY = (
    "Weak scaling: the batch of a worker is fixed, so ideal throughput is the number of workers times the "
    "baseline. Efficiency is the share of that ideal; per rank, servers count as if they could have trained. "
    "The interval is carried through the ratio by resampling both arms."
)
EFFICIENCY_COLUMNS: Columns = {
    "n": lambda row: str(row["n"]),
    "speedup": lambda row: interval(row, "speedup"),
    "efficiency per worker": lambda row: interval(row, "scaling_efficiency"),
    "efficiency per rank": lambda row: interval(row, "scaling_efficiency_per_rank"),
    "baseline": lambda row: str(row["baseline"]) or BLANK,
}
VOLUME = (
    "Predicted is the closed form of the algorithm, counted is what passed the strategy's own buffers, wire "
    "is what the kernel or the MPI library saw. Agree: counted is what was predicted, of servers too. A dash was "
    "not measured."
)
VOLUME_COLUMNS: Columns = {
    **in_units(
        BYTES,
        worker_predicted="bytes_sent_per_worker_per_step_predicted",
        worker_counted="bytes_sent_per_worker_per_step",
        worker_wire="bytes_sent_per_worker_per_step_wire",
    ),
    "agree": _agreement,
    **in_units(
        BYTES,
        server_predicted="bytes_sent_per_server_per_step_predicted",
        server_counted="bytes_sent_per_server_per_step",
    ),
    **plain(
        messages_per_worker="messages_sent_per_worker_per_step",
        messages_per_server="messages_sent_per_server_per_step",
    ),
    "allreduce": lambda row: str(row["allreduce_algorithm"]) or BLANK,
}
PHASES = (
    "Phases are means over workers and steps, the step is the median of the slowest worker's. Exposed "
    "communication is the time a worker only waits for others; the overlap fraction is the share of all "
    "communication that backward hid."
)
PHASE_COLUMNS: Columns = {
    **in_units(
        SECONDS, step="step_s", data="data_s", forward="forward_s", backward="backward_s",
        exposed_communication="exposed_communication_s", optimizer="optimizer_s",
        all_communication="communication_s",
    ),
    **plain(overlap_fraction="overlap_fraction"),
}  # fmt: skip
RESOURCE_COLUMNS: Columns = {
    **in_units(SECONDS, worker_CPU_time="worker_cpu_s", server_CPU_time="server_cpu_s"),
    **in_units(BYTES, worker_peak_memory="worker_peak_memory_bytes", server_peak_memory="server_peak_memory_bytes"),
    **plain(MFU="mfu"),
}
CROSS = "Tokens per second with the 95 % interval. Where a precision has no hardware support it costs time."
LOSS = (
    "Equal strategies end at equal loss. The gate trains one process on the concatenated batches and "
    f"compares the weights after {GATE_STEPS} steps: the error is their relative L2 distance, the bound what the "
    "wire allows."
)
LOSS_COLUMNS: Columns = {
    **plain(
        first_loss="first_loss", final_loss="final_loss", held_out_loss="held_out_loss",
        equivalence_error="equivalence_error", bound="equivalence_bound",
    ),
    "gate": _gate,
}  # fmt: skip
VALIDITY = "What a row's labels mean, and every cell that has no numbers or lost a launch."
