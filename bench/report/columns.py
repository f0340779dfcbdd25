"""The dictionary of columns in results/README.md; `python -m bench.report.columns` writes it.

Fields of records are described where they are declared; columns that a report derives are described here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from bench.config import GROUPS, RunConfig
from bench.records import RunRecord
from bench.summary import Summary
from strategies.options import Unit

README = Path(__file__).parents[2] / "results" / "README.md"
MARK = "<!-- columns: {} -->"
BLANK = "—"
Rows = dict[str, tuple[str, str]]  # name: (unit, meaning)

STEPS: Rows = {
    "worker": ("rank", "Which worker."),
    "step": (BLANK, "Which step, from 0, warm-up included."),
    "warmup": ("true or false", "Whether the step belongs to the warm-up and is not counted."),
    "loss": ("nats per token", "Training loss of this worker's batch; blank where nothing was trained."),
    "bytes_sent": (
        "bytes",
        "Sent by this worker from the end of the step before to the end of this one, in the last step to the end of "
        "the run: all steps add up to the ledger. How counted: `bytes_counted_by`.",
    ),
    "bytes_received": ("bytes", "Received by this worker, likewise."),
    "messages_sent": ("messages", "Sent by this worker in this step; blank where a library decides them."),
    "messages_received": ("messages", "Received by this worker in this step; blank where a library decides them."),
    "wire_bytes_sent": ("bytes", "Sent by this worker in the same time, as the kernel counted it (`wire_counted_by`)."),
    "wire_bytes_received": ("bytes", "Received by this worker, likewise."),
}
LEDGER_WORDS: Rows = {
    "ledger_agrees": (
        "true or false",
        "Whether counted and predicted agree; in `summary.csv` whether they do in all launches.",
    ),
    "bytes_counted_by": (
        BLANK,
        "`counted`: the strategy counted each message that it moved; `inferred`: the elements handed to a library, "
        "times what a ring moves per element (Horovod, DDP).",
    ),
    "wire_counted_by": (
        BLANK,
        "`interface`: all bytes on an emulated node's link, headers included; `sockets`: the payload on all TCP "
        "sockets of the rank, retransmissions included.",
    ),
    "wire_remark": (BLANK, "Why bytes on the wire are blank, or what is missing in them."),
}
DERIVED: Rows = {
    "world_size": ("ranks", "num_workers + num_servers."),
    "n": ("launches", "ok launches, the sample of every number in the row."),
    "rejected": ("launches", "Launches that the guard rejected for a cause outside the run; not in n."),
    "replacements": ("launches", "Launches that replaced rejected ones; in n if they were ok."),
    "tokens_per_s_with_rejected": ("tokens/s", "Median of tokens_per_s over the repeats, rejected launches included."),
    "disturbance_of_rejected": (BLANK, "The largest disturbance of a rejected launch."),
    "confidence": (
        BLANK,
        "Coverage of a median's interval: 0.95, or 1 − 2^(1−n) below 6 launches, where it is their whole range.",
    ),
    "place": (BLANK, "Where messages went: `network`, `emulated nodes` or `one machine`; blank without an ok launch."),
    "tokens_per_s_low": ("tokens/s", "Lower end of the interval of tokens_per_s."),
    "tokens_per_s_high": ("tokens/s", "Upper end of the interval of tokens_per_s."),
    "speedup": (BLANK, "tokens_per_s over that of the baseline."),
    "scaling_efficiency": (BLANK, "speedup / num_workers. Weak scaling: batch_size is per worker; 1 is ideal."),
    "scaling_efficiency_per_node": (
        BLANK,
        "speedup / world_size: dedicated servers count as workers.",
    ),
    "strong_speedup": (
        BLANK,
        "tokens_per_s over that of `strong_baseline`. Strong scaling: the same global batch, num_workers is ideal.",
    ),
    "strong_scaling_efficiency": (BLANK, "strong_speedup / num_workers."),
    "strong_scaling_efficiency_per_node": (BLANK, "strong_speedup / world_size."),
    "strong_baseline": (
        BLANK,
        "What strong_speedup is measured against, as `baseline`, but with the whole global batch.",
    ),
    "target_loss": (
        "nats per token",
        "The lowest loss, averaged over 5 steps, that every run of the same task reached (same model, data, seed and "
        "optimizer; batch size, precision and strategy may differ); from `steps/`.",
    ),
    "steps_to_loss": ("steps", "Steps until the loss was at target_loss, warm-up included; median over launches."),
    "tokens_to_loss": ("tokens", "Tokens of all workers until then."),
    "time_to_loss_s": ("s", "Time until then on the slowest worker of each step; median over launches."),
    "bytes_to_loss": ("bytes", "Bytes sent by all ranks until then, as counted."),
    "on_front": (
        "true or false",
        "Whether no other cell of the task needed at most as much time and bytes, and less of one (Pareto).",
    ),
    "compute_s": (
        "s",
        "Forward and backward of a step of the slowest worker, and its optimizer: as configured for emulated compute, "
        "else as measured. This column and the next four are blank where the links' rate is not known.",
    ),
    "worker_link_s": ("s", "Time in which a step's bytes cross the slowest worker's link, by the closed form."),
    "server_link_s": ("s", "The same of a dedicated server's link; blank without one."),
    "min_step_s": (
        "s",
        "The shortest step that links and computing allow (docs/cost-models.md); `step_s` is near it where nothing "
        "else takes time.",
    ),
    "bounded_by": (BLANK, "What takes longest alone: `compute`, `network` (workers' links) or `server link`."),
    "baseline": (
        BLANK,
        "What speedup is measured against: `local` on the same work, else one worker of the same stack; blank without "
        "either.",
    ),
}
WITH_INTERVAL = (
    "speedup", "scaling_efficiency", "scaling_efficiency_per_node", "strong_speedup", "strong_scaling_efficiency",
    "strong_scaling_efficiency_per_node", "time_to_loss_s",
)  # fmt: skip


def unit_of(name: str, annotation: object = None, metadata: list[object] | None = None) -> str:
    """Return the unit of a column: what its field says, else what its type or its name says."""
    declared = next((each.name for each in metadata or [] if isinstance(each, Unit)), None)
    if declared:
        return declared
    if "bool" in str(annotation):
        return "true or false"
    if name.endswith("_per_s"):
        return "tokens/s" if name.startswith("tokens") else "FLOP/s"
    if re.search(r"_s(_p95)?$", name):
        return "s"
    if name.endswith("_loss"):
        return "nats per token"
    return "bytes" if "bytes" in name else BLANK


def of_model(model: type[BaseModel], names: list[str] | None = None) -> Rows:
    """Return the fields of a model, described by their docstrings."""
    return {
        name: (unit_of(name, field.annotation, list(field.metadata)), " ".join((field.description or "").split()))
        for name, field in model.model_fields.items()
        if names is None or name in names
    }


def of_volumes() -> Rows:
    """Return the columns of bytes and messages per role, in the order of a record."""
    rows: Rows = {}
    for role in ("worker", "server"):
        for what in ("bytes", "messages"):
            for way in ("sent", "received"):
                rows |= _volume(f"{what}_{way}_per_{role}_per_step", what, way, role)
    return {**rows, **LEDGER_WORDS}


def _volume(name: str, what: str, way: str, role: str) -> Rows:
    unknown = "; blank where a library decides them" if what == "messages" else ""
    counted = f"{what.capitalize()} {way} in one step by the mean {role}; how counted: `bytes_counted_by`{unknown}."
    rows = {name: (what, counted), f"{name}_predicted": (what, f"The closed form of `{name}`; blank without one.")}
    if what == "bytes":
        wire = f"As the kernel counted it for the {role}; how: `wire_counted_by`; why blank: `wire_remark`."
        rows[f"{name}_wire"] = (what, wire)
    return rows


def of_summary() -> Rows:
    """Return the columns that a report derives, ends of intervals after what they belong to."""
    rows: Rows = {}
    for name, (unit, meaning) in DERIVED.items():
        rows[name] = (unit, meaning)
        if name in WITH_INTERVAL:
            rows |= {f"{name}_{end}": (unit, f"{word} end of its interval.") for end, word in ENDS.items()}
    return rows


ENDS = {"low": "Lower", "high": "Upper"}


def tables() -> Iterator[tuple[str, Rows]]:
    """Yield every table of the dictionary with the name of its place."""
    for title, classes in GROUPS.items():
        yield title, of_model(RunConfig, [name for each in classes for name in each.__annotations__])
    yield "Summary", of_model(Summary)
    yield "Ledger", of_volumes()
    yield "RunRecord", of_model(RunRecord)
    yield "steps", STEPS
    yield "summary.csv", of_summary()


def as_text(rows: Mapping[str, tuple[str, str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| `{name}` | {unit} | {meaning.replace('|', '&#124;')} |" for name, (unit, meaning) in rows.items()]
    return "\n".join(["| column | unit | meaning |", "| --- | --- | --- |", *lines])


def filled(text: str) -> str:
    """Return the page with every table behind its mark written anew; ValueError if a mark is missing."""
    for title, rows in tables():
        mark = MARK.format(title)
        before, found, after = text.partition(f"{mark}\n\n")
        if not found:
            raise ValueError(f"{README}: no line {mark}")
        rest = re.sub(r"\A(\|[^\n]*\n)*", "", after)
        text = f"{before}{found}{as_text(rows)}\n\n{rest.lstrip()}"
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
    print(README, file=sys.stderr)
