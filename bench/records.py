"""StepRecord, RunRecord and PlannedRun, and how a results folder stores them.

A results folder holds ``runs.jsonl`` (append-only, one line per run) and the raw samples in ``steps/<run_id>.csv``.
Every other file in it can be rebuilt from these.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from bench import doubts
from bench.config import MIN_CONVERGENCE, BadInput, RunConfig
from bench.files import own_folder, raising_disk_full, read_regular, write_whole
from bench.ledger import Ledger
from bench.summary import Summary
from strategies.options import Unit
from strategies.volume import Volume

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["ok", "failed", "timeout", "out_of_memory", "unsupported", "invalid"]

# Also names of files: nothing that leads out of a folder.
CELL = r"^[0-9A-Za-z]{1,40}$"
RUN_ID = r"^[0-9A-Za-z]{1,40}-r[0-9]{1,9}(-a[0-9]{1,9})?$"

LABELS: dict[str, str] = {
    "oversubscribed": "more compute threads (ranks x num_threads) than cores on a machine: they also wait for cores",
    "loopback": "all ranks on one machine: messages cross memory, not a network",
    "shared_memory": "workers and servers of one node read each other's messages in shared memory: counted, not sent",
    "emulated": "the nodes are network namespaces of one machine with shaped links; they share its cores",
    "emulated_compute": "workers slept instead of computing: nothing was trained, so there is no loss and no gate",
    "slow_precision": "the processor has no instructions for this precision: it computed in software, measured briefly",
    "not_ring": "the allreduce that ran was not a ring at one message size or more (column not_ring_bytes)",
    "few_launches": "fewer than 5 launches: the interval is the range of very few samples",
}


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step of one worker. Times are seconds of that worker's own monotonic clock."""

    worker: int
    step: int
    warmup: bool
    loss: float | None
    step_s: float
    data_s: float
    forward_s: float
    backward_s: float
    exposed_communication_s: float
    optimizer_s: float
    communication_s: float
    moved: Volume = field(default_factory=Volume)  # as this worker's strategy counted it
    wire: Volume = field(default_factory=Volume.unknown)  # as the kernel counted it

    def row(self) -> dict[str, Any]:
        """Return the columns of steps/<run_id>.csv."""
        times = {field.name: getattr(self, field.name) for field in fields(self)[:-2]}
        wire = {"wire_bytes_sent": self.wire.bytes_sent, "wire_bytes_received": self.wire.bytes_received}
        return {**times, **vars(self.moved), **wire}


def _ledger(value: Any) -> Any:
    return Ledger.of_row(value) if isinstance(value, Mapping) else value


# Stored as columns: what reads runs.jsonl needs no knowledge of roles and sources.
StoredLedger = Annotated[Ledger, BeforeValidator(_ledger), PlainSerializer(Ledger.row)]


class RunRecord(BaseModel):
    """One line of runs.jsonl: the configuration of a run, its outcome, and labels that a reader must know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    run_id: Annotated[str, Field(pattern=RUN_ID)]
    """Name of the run: its cell and its repeat."""
    cell: Annotated[str, Field(pattern=CELL)]
    """Digest of the configuration; runs of one cell differ in `repeat` alone."""
    repeat: int
    """Which launch of the cell this is."""
    attempt: int = 0
    """Which try of the repeat this is: 0, or the number of the launch that replaces a rejected one."""
    started_at: Annotated[str, Unit("UTC")]
    """When the launch began, ISO 8601."""
    status: Status
    """One of ok, failed, timeout, out_of_memory, unsupported or invalid; a cell with an ok launch is ok, unless one
    failed the equivalence gate."""
    reason: str = ""
    """Why not ok, in one line; for an ok cell: how many launches were lost, and why."""
    rejected: bool | None = None
    """Whether the run is invalid only because something outside it disturbed it: its numbers stay, out of medians, and
    verdicts are also given with them. Blank in older results."""
    environment: str
    """Digest of `environment.json`; in `summary.csv` all that the cell's launches had."""
    labels: list[str] = []
    """What a reader must know, separated by blanks; in `summary.csv` of all launches together, and `few_launches`."""
    log: str = ""
    """Where below the folder the output of the launch is that ended with this run; blank otherwise."""
    wall_s: float | None = None
    """What the sweep spent on this run, from the end of the one before it: the first run of a launch pays its
    start-up."""
    steps_s: float | None = None
    """All steps of the longest worker, warm-up included; blank for a run without numbers."""
    config: RunConfig
    """In `runs.jsonl`: the RunConfig above."""
    summary: Summary | None = None
    """In `runs.jsonl`: the Summary above; null for a run without numbers."""
    ledger: StoredLedger | None = None
    """In `runs.jsonl`: the Ledger above; null for a run without numbers."""

    @property
    def is_rejected(self) -> bool:
        """Whether the guard rejected the run; in older results: invalid, and the gate found nothing."""
        if self.rejected is not None or self.summary is None:
            return bool(self.rejected)
        found = self.summary
        failed = (found.equivalence_error or 0.0) > (found.equivalence_bound or math.inf)
        gate_failed = failed or (found.convergence if found.convergence is not None else 1.0) < MIN_CONVERGENCE
        return self.status == "invalid" and not gate_failed

    def describe(self) -> str:
        """Return the run in one line: throughput, loss, verdict of the gate, labels."""
        if self.summary is None:
            return f"{self.status}: {self.reason}"
        found = self.summary
        line = f"{found.tokens_per_s:,.0f} tokens/s, "
        if found.first_loss is None or found.final_loss is None:
            line += f"{found.step_s * 1e3:.4g} ms a step"
        else:
            line += f"loss {found.first_loss:.4f} -> {found.final_loss:.4f}"
        if found.equivalence_error is not None:
            line += f", equivalence {found.equivalence_error:.2g} of at most {found.equivalence_bound:.2g}"
        if found.convergence is not None:
            line += f", convergence {found.convergence:.2f} of at least {MIN_CONVERGENCE}"
        bad = [] if self.status == "ok" else [f"{self.status}: {self.reason}"]
        return ", ".join([line, *bad]) + "".join(f" [{label}]" for label in self.labels)

    def row(self) -> dict[str, object]:
        """Return one flat table row; the numbers of a failed run are None."""
        numbers = self.summary.model_dump() if self.summary else dict.fromkeys(Summary.model_fields)
        numbers |= self._ledger_row()
        own = self.model_dump(exclude={"config", "summary", "ledger", "labels"}) | {"rejected": self.is_rejected}
        shape = self.config.gpt.model_dump()
        return {**own, "labels": " ".join(self.labels), **self.config.model_dump(), **shape, **numbers}

    def _ledger_row(self) -> dict[str, object]:
        """Return the ledger's columns; older records do not say how bytes were counted, but their strategy does."""
        found = dict[str, object]((self.ledger or Ledger()).row())
        if found["bytes_sent_per_worker_per_step"] is not None and found["bytes_counted_by"] is None:
            found["bytes_counted_by"] = self.config.kind.bytes_counted_by
        return found


class PlannedRun(BaseModel):
    """The repeat-th run of a cell, before it has run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: RunConfig
    repeat: int = 0
    attempt: int = 0

    @property
    def run_id(self) -> str:
        """Name of its record and of its file of samples."""
        return f"{self.config.digest()}-r{self.repeat}" + (f"-a{self.attempt}" if self.attempt else "")

    def describe(self) -> str:
        """Return the run's strategy, ranks and unusual knobs in a few words."""
        c = self.config
        servers = f" + {c.num_servers}" if c.num_servers else ""
        words = [f"{c.strategy} {c.num_workers}{servers}"]
        words += [getattr(c, knob) for knob in c.given(("placement", "sharding", "consistency", "compression"))]
        words += [f"sync every {c.sync_every}"] * (c.sync_every > 1)
        words += [c.precision, f"wire {c.wire_dtype}", f"batch {c.batch_size}"]
        words += [f"compute {c.compute}"] * (c.compute != "real")
        words += [f"speed {c.speed_factor}"] * (c.speed_factor is not None)
        words += [f"cv {c.compute_cv:g}"] * (c.compute_cv > 0)
        return ", ".join(words)

    def record(self, status: Status, environment: str, **found: Any) -> RunRecord:
        """Return its record; fields that are not given have their defaults."""
        values: dict[str, Any] = {"started_at": now(), **found}
        return RunRecord(
            run_id=self.run_id,
            cell=self.config.digest(),
            repeat=self.repeat,
            attempt=self.attempt,
            status=status,
            environment=environment,
            config=self.config,
            **values,
        )


class RunningNow(BaseModel):
    """The run that a sweep is at, stored in its folder for `psring status`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    pid: int
    host: str
    since: str


def now() -> str:
    """Return the time of day in UTC, ISO 8601, whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def append(folder: Path, record: RunRecord) -> None:
    """Append one line to runs.jsonl; it is on the disk when this returns. DiskFull if there is no room."""
    path = folder / "runs.jsonl"
    with raising_disk_full(path):
        _end_last_line(path)
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(record.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            _end_last_line(path)
            raise


def _end_last_line(path: Path) -> None:
    """End a last line that has no newline; remove it if it is half a record of a killed writer, which is repeated."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        content = file.read()
        begin = content.rfind(b"\n") + 1
        if _is_record(content[begin:]):
            file.write(b"\n")
        else:
            file.truncate(begin)


def _is_record(line: bytes) -> bool:
    try:
        RunRecord.model_validate_json(line)
    except ValidationError:
        return False
    return True


def read(folder: Path) -> list[RunRecord]:
    """Return a folder's runs: the last record of each run_id, in the order of the first.

    BadInput, with the line, if the file is missing or a line is no record that can be true.
    """
    path = folder / "runs.jsonl"
    try:
        lines = read_regular(path).removeprefix(codecs.BOM_UTF8).split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{folder}: no runs.jsonl there; give the folder that `psring sweep --out` wrote") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    records: dict[str, RunRecord] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = RunRecord.model_validate_json(line)
        except ValidationError as error:
            if number == len(lines):  # no newline follows: its writer was killed
                continue
            problem = _first_problem(error)
            raise BadInput(f"{path}:{number}: not a run record ({problem}); remove the line") from None
        if why := doubts.doubt(record):
            raise BadInput(f"{path}:{number}: {record.run_id}: {why}; remove the line, and the run is repeated")
        records[record.run_id] = record
    doubts.check_cells(path, records.values())
    return list(records.values())


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}"[:200] if place else problem["msg"]


def size(folder: Path) -> int:
    """Return the bytes of runs.jsonl, 0 without one: cheap to compare for changes."""
    path = folder / "runs.jsonl"
    return path.stat().st_size if path.exists() else 0


def frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """Return one row per run; the columns are those of RunConfig, GPTShape, Summary and Ledger."""
    import pandas as pd  # imported here, because ranks do not need it and it is slow to import

    return pd.DataFrame([record.row() for record in records])


def write_steps(folder: Path, name: str, steps: Iterable[StepRecord]) -> None:
    """Write the raw samples of one run, warm-up steps included, to steps/<name>.csv."""
    out = own_folder(folder, "steps")
    rows = [step.row() for step in steps]
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0] if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # None becomes a blank
    write_whole(out / f"{name}.csv", table.getvalue())
