"""The sections of a report below its answer: what each one shows, in reading order, and what it says of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from bench.config import GATE_STEPS, LEAST_CONVERGENCE
from bench.records import LABELS
from bench.report.tables import (
    BLANK,
    BYTES,
    SECONDS,
    Columns,
    Row,
    Table,
    cell_names,
    in_units,
    interval,
    number,
    plain,
    table,
)  # fmt: skip

PROBLEMS = "Cells without numbers, or with fewer"


class Section(NamedTuple):
    """One heading of the report and what stands under it, in this order; figures only where they were drawn."""

    title: str
    text: str
    figures: list[str]
    tables: list[Table]


def sections(summary: pd.DataFrame, effects: pd.DataFrame, drawn: list[str]) -> list[Section]:
    """Everything below the answer; `effects` is each cell against its twin in fp32 (`duels.precision_effects`)."""
    names = cell_names(summary)
    rows: Sequence[Row] = summary.to_dict("records")  # once: of thousands of cells it takes its time
    twins: Sequence[Row] = effects.to_dict("records")
    strong = [row for row in rows if pd.notna(row["strong_speedup"]) and row["num_workers"] > 1]
    reached = [row for row in rows if pd.notna(row["time_to_loss_s"])]
    parts = [
        Section("Scaling", SCALING, ["throughput", "scaling_efficiency", "strong_scaling"], [
            table(rows, "Throughput and its witness, the loss", THROUGHPUT_COLUMNS, names),
            table(rows, "Weak scaling", scaling_columns(""), names),
            table(strong, "Strong scaling", scaling_columns("strong_"), names),
        ]),
        Section("Communication volume", VOLUME, ["communication_volume"], [
            table(rows, "Sent by a worker in one step", VOLUME_COLUMNS, names),
        ]),
        Section("Where the time goes", PHASES, ["step_time"], [
            table(rows, "Phases of a step", PHASE_COLUMNS, names),
            table(rows, "Resources", RESOURCE_COLUMNS, names),
        ]),
        Section("Precision and batch size", CROSS, ["batch_size"], [
            cross_table(rows, names),
            table(twins, "Tokens per second ÷ those of the same cell in fp32", EFFECT_COLUMNS, names),
        ]),
        Section("Parameter server", SERVER, [], [server_table(summary, names)]),
        Section("Loss against time", LOSS, ["loss_against_time", "front"], [
            table(reached, "To the same loss", TO_LOSS_COLUMNS, names),
            table(rows, "Loss witness and equivalence gate", LOSS_COLUMNS, names),
        ]),
        Section("Validity", VALIDITY, [], [label_table(summary), problem_table(rows, names)]),
    ]  # fmt: skip
    shown = [
        part._replace(
            figures=[name for name in part.figures if name in drawn],
            tables=[one for one in part.tables if one.rows or one.caption == PROBLEMS],
        )
        for part in parts
    ]
    return [part for part in shown if part.figures or part.tables]


def label_table(summary: pd.DataFrame) -> Table:
    """Every known label, what it means, and how many cells carry it."""
    counts = label_counts(summary)
    rows = [[label, meaning, f"{counts[label]} of {len(summary)}"] for label, meaning in LABELS.items()]
    return Table("Labels", ["label", "meaning", "cells"], rows)


def label_counts(summary: pd.DataFrame) -> dict[str, int]:
    """How many rows carry each known label."""
    carried = summary["labels"].str.split().explode().value_counts()
    return {label: int(carried.get(label, 0)) for label in LABELS}


def problem_table(rows: Iterable[Row], names: Columns) -> Table:
    """Every cell that lost a launch, and why."""
    bad = [row for row in rows if row["status"] != "ok" or row["reason"]]
    return table(bad, PROBLEMS, PROBLEM_COLUMNS, names)


def cross_table(rows: Sequence[Row], names: Columns) -> Table:
    """Tokens per second of every curve and number of workers, beside each other per precision and batch."""
    settings = list(dict.fromkeys((row["precision"], row["batch_size"]) for row in rows))
    kept = {head: name for head, name in names.items() if head not in ("precision", "batch")}
    places: dict[tuple[str, ...], dict[tuple[str, int], str]] = {}
    for row in rows:
        place = places.setdefault(tuple(name(row) for name in kept.values()), {})
        speed = interval(row, "tokens_per_s") if row["status"] == "ok" else str(row["status"])
        place[row["precision"], row["batch_size"]] = speed
    head = [*kept, *(f"{precision}, batch {batch}" for precision, batch in settings)]
    lines = [[*place, *(found.get(one, BLANK) for one in settings)] for place, found in places.items()]
    return Table("Tokens per second by precision and batch size", head, lines)


def server_table(summary: pd.DataFrame, names: Columns) -> Table:
    """What only servers have: every number of the summary that speaks of them and is known for one."""
    served = summary[summary["strategy"] == "parameter_server"]
    fields = [
        name
        for name in map(str, served.select_dtypes("number"))
        if any(word in name for word in SERVER_WORDS) and name not in NOT_SERVER and served[name].notna().any()
    ]
    columns: Columns = {"servers": lambda row: str(row["num_servers"])}
    for name in fields:
        head = name.removesuffix("_s").replace("_per_step", "")
        unit = SECONDS if name.endswith("_s") else BYTES if "bytes" in name else None
        columns |= in_units(unit, **{head: name}) if unit else plain(**{head: name})
    return (
        table(served.to_dict("records"), "Load and waiting of the servers", columns, names)
        if fields
        else Table("", [], [])
    )


def scaling_columns(prefix: str) -> Columns:
    """Speedup and efficiency with their baseline; the prefix chooses weak or strong."""
    return {
        "n": lambda row: str(row["n"]),
        "speedup": lambda row: interval(row, f"{prefix}speedup"),
        "efficiency per worker": lambda row: interval(row, f"{prefix}scaling_efficiency"),
        "efficiency per rank": lambda row: interval(row, f"{prefix}scaling_efficiency_per_rank"),
        "baseline": lambda row: str(row[f"{prefix}baseline"]) or BLANK,
    }


def _agreement(row: Row) -> str:
    return {True: "yes", False: "NO"}.get(row["ledger_agrees"], BLANK)


def _wire_share(row: Row) -> str:
    counted = row["bytes_sent_per_worker_per_step"]
    return number(row["bytes_sent_per_worker_per_step_wire"] / counted) if counted else BLANK


def _gate(row: Row) -> str:
    if pd.notna(row["convergence"]):
        return "passed" if row["convergence"] >= LEAST_CONVERGENCE else "FAILED"
    if pd.isna(row["equivalence_error"]):
        return "not checked"
    return "passed" if row["equivalence_error"] <= row["equivalence_bound"] else "FAILED"


SCALING = (
    "Tokens per second is all work of all workers over their common time; the final loss beside it says whether speed "
    "bought progress. Weak scaling holds the batch of each worker fixed, strong scaling the batch of all together; "
    "either way the ideal is the number of workers times the baseline, and efficiency the share of it. A dedicated "
    "server is a rank that does not train: per rank, servers count as if they could have trained. n counts the ok "
    "launches."
)
THROUGHPUT_COLUMNS: Columns = {
    "n": lambda row: str(row["n"]),
    "tokens/s": lambda row: interval(row, "tokens_per_s"),
    **plain(final_loss="final_loss"),
    "per worker": lambda row: number(row["tokens_per_s"] / row["num_workers"]),
    "per rank": lambda row: number(row["tokens_per_s"] / row["world_size"]),
    "status": lambda row: str(row["status"]),
    "labels": lambda row: ", ".join(str(row["labels"]).split()),
}
VOLUME = (
    "Predicted is the closed form of the algorithm, counted is what passed the strategy's own buffers, wire is what "
    "the kernel saw. Agrees: counted is what was predicted, of servers too. The wire carries headers besides: a "
    "little over 1 is right. A dash was not measured."
)
VOLUME_COLUMNS: Columns = {
    **in_units(
        BYTES,
        predicted="bytes_sent_per_worker_per_step_predicted",
        counted="bytes_sent_per_worker_per_step",
        wire="bytes_sent_per_worker_per_step_wire",
    ),
    "agrees": _agreement,
    "wire ÷ counted": _wire_share,
    **plain(messages="messages_sent_per_worker_per_step"),
    "allreduce": lambda row: str(row["allreduce_algorithm"]) or BLANK,
}
PHASES = (
    "Phases are means over workers and steps, the step is the median of the slowest worker's. Exposed "
    "communication is the time a worker only waits for others; the overlap fraction is the share of all "
    "communication that backward hid."
)
PHASE_COLUMNS: Columns = {
    **in_units(
        SECONDS, step="step_s", step_p95="step_s_p95", data="data_s", forward="forward_s", backward="backward_s",
        exposed="exposed_communication_s", optimizer="optimizer_s", all_communication="communication_s",
    ),
    **plain(overlap_fraction="overlap_fraction"),
}  # fmt: skip
RESOURCE_COLUMNS: Columns = {
    **in_units(SECONDS, worker_CPU_time="worker_cpu_s", server_CPU_time="server_cpu_s"),
    **in_units(BYTES, worker_peak_memory="worker_peak_memory_bytes", server_peak_memory="server_peak_memory_bytes"),
    **plain(MFU="mfu"),
}
CROSS = (
    "Tokens per second with their interval, and what another precision than fp32 did to the same cell, launches paired "
    "by repeat. Where a precision has no hardware support it costs time."
)
EFFECT_COLUMNS: Columns = {
    "pairs": lambda row: str(row["n"]),
    "÷ fp32": lambda row: interval(row, "ratio"),
    "it is": lambda row: str(row["verdict"]),
}
SERVER = "What each server sent and received in a step, and how long it worked or let others wait; means over servers."
SERVER_WORDS = ("server", "staleness", "queue", "duplex")
NOT_SERVER = ("num_servers", "server_peak_memory_bytes")
LOSS = (
    "Equal strategies end at equal loss. The target is the lowest loss, averaged over a few steps, that every run of "
    "the same task reached; the time to it is that of all steps, warm-up included, the bytes those of all ranks. On "
    "the front: no other cell needed less of both. The gate trains one process on the concatenated batches and "
    f"compares the weights after {GATE_STEPS} steps: the error is their relative L2 distance, the bound what the wire "
    "allows. Asynchronous, compressed and rarely synchronised runs promise no such weights: convergence is how far "
    f"their held-out loss fell over how far that process's did, and passes from {LEAST_CONVERGENCE} on."
)
TO_LOSS_COLUMNS: Columns = {
    **plain(target_loss="target_loss", steps="steps_to_loss", tokens="tokens_to_loss"),
    "seconds": lambda row: interval(row, "time_to_loss_s"),
    **in_units(BYTES, bytes_of_all_ranks="bytes_to_loss"),
    "on the front": lambda row: "yes" if row["on_front"] else "no",
}
LOSS_COLUMNS: Columns = {
    **plain(
        first_loss="first_loss", final_loss="final_loss", held_out_loss="held_out_loss",
        equivalence_error="equivalence_error", bound="equivalence_bound",
        convergence="convergence",
    ),
    "gate": _gate,
}  # fmt: skip
VALIDITY = "What labels mean, and every cell without numbers or with a lost launch: such launches are in no figure."
PROBLEM_COLUMNS: Columns = {
    "status": lambda row: str(row["status"]),
    "ok launches": lambda row: str(row["n"]),
    "reason": lambda row: str(row["reason"]),
}
