"""The sections of a report below its answer, in reading order: a text, figures and tables each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.config import GATE_STEPS, MIN_CONVERGENCE
from bench.predict.explain import PARTS, Explanation
from bench.records import LABELS
from bench.report import beyond, equal_nodes
from bench.report.cells import is_kind
from bench.report.modelled import Modelled
from bench.report.tables import (
    BLANK,
    BYTES,
    SECONDS,
    Columns,
    Row,
    Table,
    Units,
    cell_names,
    in_units,
    interval,
    number,
    number_of,
    plain,
    scaled,
    size_of,
    table,
)  # fmt: skip

PROBLEMS = "Cells with failed launches"


class Section(NamedTuple):
    """One heading of the report, its text, and the names of its figures (only those that were drawn) and tables."""

    title: str
    text: str
    figures: list[str]
    tables: list[Table]


def sections(
    summary: pd.DataFrame,
    effects: pd.DataFrame,
    drawn: list[str],
    modelled: Modelled,
    total_steps: Mapping[str, int],
) -> list[Section]:
    """The sections that have anything to show.

    `effects` compares precisions (`duels.precision_effects`); `modelled` has what the model of cost says of cells;
    `total_steps` their steps, warm-up included.
    """
    shown = [
        part._replace(
            figures=[name for name in part.figures if name in drawn],
            tables=[one for one in part.tables if one.rows or one.caption == PROBLEMS],
        )
        for part in _all_sections(summary, effects, modelled, total_steps)
    ]
    return [part for part in shown if part.figures or part.tables or part.title == beyond.TITLE]


def _all_sections(
    summary: pd.DataFrame, effects: pd.DataFrame, modelled: Modelled, total_steps: Mapping[str, int]
) -> list[Section]:
    """Every section in order, with all figures that it may have and all tables, empty ones included."""
    names = cell_names(summary)
    rows: Sequence[Row] = summary.to_dict("records")  # once: slow for thousands of cells
    effect_rows: Sequence[Row] = effects.to_dict("records")
    strong = [row for row in rows if pd.notna(row["strong_speedup"]) and row["num_workers"] > 1]
    reached = [row for row in rows if pd.notna(row["time_to_loss_s"])]
    limited = [row for row in rows if pd.notna(row["min_step_s"] / row["step_s"]) and row["world_size"] > 1]
    return [
        Section("At equal nodes", equal_nodes.TEXT, [], [
            table(equal_nodes.rows_at_equal_nodes(summary, total_steps), equal_nodes.TITLE, equal_nodes.COLUMNS, names),
        ]),
        Section("Scaling", SCALING, ["throughput", "scaling_efficiency", "strong_scaling"], [
            table(rows, "Throughput and held-out loss", THROUGHPUT_COLUMNS, names),
            table(rows, "Weak scaling", scaling_columns(""), names),
            table(strong, "Strong scaling", scaling_columns("strong_"), names),
        ]),
        Section("What bounds it", PHASES, ["step_time"], [
            table(limited, "Step against the shortest step that links and computing allow", LIMIT_COLUMNS, names),
            table(rows, "Phases of a step", PHASE_COLUMNS, names),
            table(rows, "Resources", RESOURCE_COLUMNS, names),
        ]),
        Section("Where a step's time goes", f"{PARTS_TEXT} {beyond.parts_remark(modelled)}".strip(), [], [
            table(
                [r for r in rows if r["cell"] in modelled.explained], "Parts of a step",
                parts_columns(modelled.explained), names,
            ),
            meanings(modelled.explained),
        ]),
        Section(beyond.TITLE, beyond.text(modelled), list(beyond.DESCRIPTIONS), []),
        Section("Communication volume", VOLUME, ["communication_volume"], [
            table(rows, "Bytes sent per worker per step", VOLUME_COLUMNS, names),
        ]),
        Section("Validity", VALIDITY, [], [label_table(summary), problem_table(rows, names)]),
        Section("Parameter server", SERVER, [], [server_table(summary, names)]),
        Section("Loss against time", LOSS, ["loss_against_time", "front"], [
            table(reached, "Cost of reaching the target loss", TO_LOSS_COLUMNS, names),
            table(rows, "Loss and equivalence gate", LOSS_COLUMNS, names),
        ]),
        Section("Precision and batch size", CROSS, ["batch_size"], [
            cross_table(rows, names),
            table(effect_rows, "Tokens per second relative to the same cell in fp32", EFFECT_COLUMNS, names),
        ]),
    ]  # fmt: skip


def label_table(summary: pd.DataFrame) -> Table:
    """Every known label, its meaning, and the number of cells that carry it."""
    counts = label_counts(summary)
    rows = [[label, meaning, f"{counts[label]} of {len(summary)}"] for label, meaning in LABELS.items()]
    return Table("Labels", ["label", "meaning", "cells"], rows)


def label_counts(summary: pd.DataFrame) -> dict[str, int]:
    """The number of rows that carry each known label."""
    carried = summary["labels"].str.split().explode().value_counts()
    return {label: int(carried.get(label, 0)) for label in LABELS}


def problem_table(rows: Iterable[Row], names: Columns) -> Table:
    """Every cell with a launch that is not ok, and the reason."""
    bad = [row for row in rows if row["status"] != "ok" or row["reason"]]
    return table(bad, PROBLEMS, PROBLEM_COLUMNS, names)


def cross_table(rows: Sequence[Row], names: Columns) -> Table:
    """Tokens per second with a row per strategy and number of workers, a column per precision and batch size."""
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
    """The numbers that describe servers, a row per parameter-server cell; no column that is blank in every row."""
    served = summary[is_kind(summary, "has_servers")]
    busy = served["server_link_s"].fillna(served["worker_link_s"])  # colocated servers have the workers' links
    served = served.assign(link_in_use=100 * busy / served["step_s"], link_idle_s=served["step_s"] - busy)
    columns: Columns = {"servers": lambda row: str(row["num_servers"])}
    for head, (field, units) in SERVER_FIELDS.items():
        if served[field].notna().any():
            columns[head] = partial(size_of, field, units) if units else partial(number_of, field)
    return table(served.to_dict("records"), "Links, traffic and balance of the servers", columns, names)


def scaling_columns(prefix: str) -> Columns:
    """Speedup, efficiency and baseline of weak scaling (prefix "") or strong scaling (prefix "strong_")."""
    return {
        "n": lambda row: str(row["n"]),
        "speedup": lambda row: interval(row, f"{prefix}speedup"),
        "efficiency per worker": lambda row: interval(row, f"{prefix}scaling_efficiency"),
        "efficiency per node": lambda row: interval(row, f"{prefix}scaling_efficiency_per_node"),
        "baseline": lambda row: str(row[f"{prefix}baseline"]) or BLANK,
    }


def parts_columns(explained: Mapping[str, Explanation]) -> Columns:
    """The step, its parts, what they leave unexplained, and the change that would gain most."""

    def part(name: str, row: Row) -> str:
        return scaled(explained[row["cell"]].parts.get(name, np.nan), SECONDS)

    def advised(row: Row) -> str:
        found = explained[row["cell"]].advice
        return f"{found.text}: {found.gain:.2f}×" if found else BLANK

    return {
        "step": lambda row: scaled(explained[row["cell"]].step_s, SECONDS),
        **{name: partial(part, name) for name in PARTS},
        "unexplained": lambda row: f"{100 * explained[row['cell']].unexplained_share:.1f} %",
        "would help most": advised,
    }


def meanings(explained: Mapping[str, Explanation]) -> Table:
    """What each part that some step has is."""
    found = {name for one in explained.values() for name in one.parts}
    rows = [[name, meaning] for name, meaning in PARTS.items() if name in found]
    return Table("What the parts are", ["part", "meaning"], rows)


def _agreement(row: Row) -> str:
    return {True: "yes", False: "NO"}.get(row["ledger_agrees"], BLANK)


def _how_counted(row: Row) -> str:
    """How bytes were counted, and how those on the wire were."""
    how = [str(row[name]) for name in ("bytes_counted_by", "wire_counted_by") if row[name]]
    return ", ".join(how) or BLANK


def _wire_share(row: Row) -> str:
    counted = row["bytes_sent_per_worker_per_step"]
    return number(row["bytes_sent_per_worker_per_step_wire"] / counted) if counted else BLANK


def _gate(row: Row) -> str:
    if pd.notna(row["convergence"]):
        return "passed" if row["convergence"] >= MIN_CONVERGENCE else "FAILED"
    if pd.isna(row["equivalence_error"]):
        return "not checked"
    return "passed" if row["equivalence_error"] <= row["equivalence_bound"] else "FAILED"


SCALING = (
    "Tokens per second is the tokens of all workers over their common measured time. The held-out loss, on the same "
    "batches for every cell, shows whether the work was equal. Weak scaling keeps the batch of each worker fixed, "
    "strong scaling the global batch. The ideal is the number of workers times the baseline; efficiency is the share "
    "of that ideal. Per node, dedicated servers count as workers (a rank stands for a node). n is the number of ok "
    "launches."
)
THROUGHPUT_COLUMNS: Columns = {
    "n": lambda row: str(row["n"]),
    "tokens/s": lambda row: interval(row, "tokens_per_s"),
    "held-out loss": partial(number_of, "held_out_loss"),
    "per worker": lambda row: number(row["tokens_per_s"] / row["num_workers"]),
    "per node": lambda row: number(row["tokens_per_s"] / row["world_size"]),
    "status": lambda row: str(row["status"]),
    "labels": lambda row: ", ".join(str(row["labels"]).split()).replace("_", " "),
    "code": lambda row: str(row["strategy"]),
}
VOLUME = (
    "Predicted bytes are the closed form of the algorithm. Counted bytes are those of the messages that the strategy "
    "moved; where a library hides its messages they are inferred: elements handed to it, times what a ring moves per "
    "element. Wire bytes are the kernel's: of the link (interface) or of the rank's TCP connections (sockets). Agrees: "
    "counted equals predicted, for workers and servers. Wire ÷ counted is a little over 1 because of headers and "
    "negotiation. A dash means not measured; wire_remark in runs.csv says why."
)
VOLUME_COLUMNS: Columns = {
    **in_units(
        BYTES,
        predicted="bytes_sent_per_worker_per_step_predicted",
        counted="bytes_sent_per_worker_per_step",
        wire="bytes_sent_per_worker_per_step_wire",
    ),
    "counted by": _how_counted,
    "agrees": _agreement,
    "wire ÷ counted": _wire_share,
    **plain(messages="messages_sent_per_worker_per_step"),
    "allreduce": lambda row: str(row["allreduce_algorithm"]) or BLANK,
}
PHASES = (
    "The shortest step follows from the closed form of the volume, the rate of the links and the time of the "
    "layers: each gradient is sent after its backward, and its answer is there before the next step needs it. "
    "Bounded by names what would take longest alone: computing, the workers' links (network), or the servers' "
    "links. It is known for emulated links only; a link passes 128 KiB at once, so that a step may be shorter by "
    "that. Phases are means over workers and steps; the step is the median over steps of the slowest worker. "
    "Exposed communication is the time in which a worker only waits for messages; the overlap fraction is the share "
    "of all communication time that is not exposed. CPU time is that of a rank's process in the whole run."
)
LIMIT_COLUMNS: Columns = {
    **in_units(SECONDS, **{
        "step": "step_s", "shortest step": "min_step_s", "computing": "compute_s", "worker's link": "worker_link_s",
        "server's link": "server_link_s",
    }),
    "step ÷ shortest": lambda row: number(row["step_s"] / row["min_step_s"]),
    "bounded by": lambda row: str(row["bounded_by"]),
}  # fmt: skip
PARTS_TEXT = (
    "The costs of hosts and links are fitted to the cells of this report (psring predict), and each part is what one "
    "cost adds to the predicted step. Unexplained is the rest of the measured step. The last column is the change of "
    "one knob that is predicted to gain most at equal workers (docs/explain.md)."
)
PHASE_COLUMNS: Columns = {
    **in_units(
        SECONDS, step="step_s", step_p95="step_s_p95", data="data_s", forward="forward_s", backward="backward_s",
        exposed="exposed_communication_s", optimizer="optimizer_s", all_communication="communication_s",
    ),
    **plain(overlap_fraction="overlap_fraction"),
}  # fmt: skip
RESOURCE_COLUMNS: Columns = {
    **in_units(SECONDS, worker_CPU_in_the_run="worker_cpu_s", server_CPU_in_the_run="server_cpu_s"),
    **in_units(BYTES, worker_peak_memory="worker_peak_memory_bytes", server_peak_memory="server_peak_memory_bytes"),
    **plain(MFU="mfu"),
}
CROSS = (
    "Tokens per second with intervals, and the effect of each precision relative to fp32 on otherwise equal cells, "
    "launches paired by repeat. A precision without hardware support is usually slower."
)
EFFECT_COLUMNS: Columns = {
    "pairs": lambda row: str(row["n"]),
    "÷ fp32": lambda row: interval(row, "ratio"),
    "verdict": lambda row: str(row["verdict"]),
}
SERVER = (
    "Link in use is the share of a step in which the busier direction of the slowest server's link carries data, by "
    "the closed form; link idle is the rest of the step. Bytes and messages are per server and step, means over "
    "servers. Shard imbalance is the largest shard over the mean (1 is balanced). Server waits is the time per step "
    "in which a dedicated server has no message to handle. Longest wait is the exposed communication of the worker "
    "that waited longest. Staleness is the number of updates by others that a gradient did not include (asp, ssp); "
    "largest lead is by how many steps a worker was ever ahead of the slowest. Duplex factor is the slowdown of a "
    "transfer when both directions are busy: 1 is full duplex, 2 half duplex."
)
SERVER_FIELDS: dict[str, tuple[str, Units | None]] = {
    "link in use, %": ("link_in_use", None),
    "link idle": ("link_idle_s", SECONDS),
    "sent": ("bytes_sent_per_server_per_step", BYTES),
    "sent, predicted": ("bytes_sent_per_server_per_step_predicted", BYTES),
    "sent, wire": ("bytes_sent_per_server_per_step_wire", BYTES),
    "received": ("bytes_received_per_server_per_step", BYTES),
    "messages sent": ("messages_sent_per_server_per_step", None),
    "messages received": ("messages_received_per_server_per_step", None),
    "shard imbalance": ("shard_imbalance", None),
    "server waits": ("server_wait_s", SECONDS),
    "longest wait": ("longest_wait_s", SECONDS),
    "mean staleness": ("mean_staleness", None),
    "largest lead": ("largest_lead", None),
    "duplex factor": ("duplex_factor", None),
}
LOSS = (
    "Equivalent strategies reach equal held-out loss: that of the same batches for every cell. The target loss is "
    "the lowest trailing mean of the training loss that every run of the same task reached. Time and bytes to it "
    "include warm-up steps; bytes are those of all ranks. A cell is on the Pareto front if no other cell needed "
    "less time and fewer bytes. The equivalence gate trains up to "
    f"{GATE_STEPS} steps again beside one process on the workers' batches and compares their weights step by step: "
    "the error is the largest distance over what rounding explains, at most 1. Asynchronous and compressed runs and "
    "runs with sync_every > 1 do not promise equal weights; their gate is convergence, the fall of the held-out loss "
    f"relative to that of one process, which must be at least {MIN_CONVERGENCE}."
)
TO_LOSS_COLUMNS: Columns = {
    **plain(target_loss="target_loss", steps="steps_to_loss", tokens="tokens_to_loss"),
    "seconds": lambda row: interval(row, "time_to_loss_s"),
    **in_units(BYTES, bytes_of_all_ranks="bytes_to_loss"),
    "Pareto front": lambda row: "yes" if row["on_front"] else "no",
}
LOSS_COLUMNS: Columns = {
    "held-out loss": partial(number_of, "held_out_loss"),
    **plain(equivalence_error="equivalence_error", bound="equivalence_bound", convergence="convergence"),
    "gate": _gate,
}
VALIDITY = "The meaning of each label, and every cell with a launch that is not ok. Figures show only ok launches."
PROBLEM_COLUMNS: Columns = {
    "status": lambda row: str(row["status"]),
    "ok launches": lambda row: str(row["n"]),
    "reason": lambda row: str(row["reason"]),
}
