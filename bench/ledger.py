"""Communication volume of one step: what was counted, what the closed form predicts, and what the kernel saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.config import RunConfig
from strategies.closed_forms import Job, Prediction
from strategies.volume import NAMES, Volume

# At most, per message: headers of Open MPI, TCP, IP and Ethernet, and the acknowledgement (140 to 200 were seen).
HEADER_BYTES = 200
SUFFIXES = {"counted": "", "predicted": "_predicted", "wire": "_wire"}
# A record's columns, in order: each is one number of one source of one role. The kernel counts bytes only.
COLUMNS = {
    f"{name}_per_{role}_per_step{suffix}": (role, source, name)
    for role in ("worker", "server")
    for name in NAMES
    for source, suffix in SUFFIXES.items()
    if source != "wire" or name.startswith("bytes")
}
AGREES = "ledger_agrees"
# How the numbers were found, and why bytes on the wire are blank or incomplete.
WORDS = ("bytes_counted_by", "wire_counted_by", "wire_remark")
# TCP adds to a message and takes nothing away: sockets that carried less than this were not the only way.
MIN_CARRIED = 0.99
MAX_RETRANSMITTED = 0.01  # share of bytes; more is remarked


@dataclass(frozen=True)
class RoleVolumes:
    """What the mean rank of a role moves in one step, by source; unknown where there is no such rank."""

    counted: Volume = field(default_factory=Volume.unknown)  # by the strategy: `Ledger.bytes_counted_by`
    predicted: Volume = field(default_factory=Volume.unknown)  # by the closed form
    wire: Volume = field(default_factory=Volume.unknown)  # by the kernel: `Ledger.wire_counted_by`

    def agrees(self, tolerance_bytes: float) -> bool | None:
        """Return whether the counts are the closed form's, within a tolerance; None if nothing can be compared."""
        compared = None
        for counted, predicted in zip(vars(self.counted).values(), vars(self.predicted).values(), strict=True):
            if counted is None or predicted is None:
                continue
            compared = True
            rounding = 1e-12 * predicted  # of the means, which are floats
            if abs(counted - predicted) > tolerance_bytes + rounding:
                return False
        return compared


@dataclass(frozen=True)
class WireSource:
    """How the kernel was asked for bytes on the wire, and what it may have missed."""

    by: str = ""  # "interface" or "sockets"; empty: not asked
    num_closed: int = 0  # connections that closed during the run
    retransmitted: float = 0.0  # share of the bytes sent on sockets
    share_host: bool = False  # whether two ranks ran on one host: they may exchange messages in its memory

    def judge(self, carried: float | None) -> tuple[bool, str | None]:
        """Return whether the kernel saw all messages as far as is known, and a remark; see `Ledger.carried`.

        An interface sees all that leaves a node. Sockets do not see what ranks of one host exchange in its memory.
        """
        if self.by != "sockets":
            return True, None
        if carried is None and self.share_host:
            return False, "messages may have passed shared memory: the counted bytes, which would tell, are unknown"
        if carried is not None and carried < MIN_CARRIED:
            rest = "messages passed shared memory" if self.share_host else "another transport, or a wrong count"
            return not self.share_host, f"TCP sockets carried {carried:.2%} of the counted bytes: {rest}"
        remarks = []
        if self.num_closed:
            remarks.append(f"{self.num_closed} connections closed during the run: their last bytes are missing")
        if self.retransmitted > MAX_RETRANSMITTED:
            remarks.append(f"{self.retransmitted:.1%} of the bytes sent are retransmissions")
        return True, "; ".join(remarks) or None


@dataclass(frozen=True)
class Ledger:
    """The volumes of the mean worker and the mean dedicated server, and whether the counts are the closed form's."""

    worker: RoleVolumes = field(default_factory=RoleVolumes)
    server: RoleVolumes = field(default_factory=RoleVolumes)
    agrees: bool | None = None  # None: nothing could be compared
    bytes_counted_by: str | None = None  # "counted" or "inferred"; None: unknown
    wire_counted_by: str | None = None  # "interface" or "sockets"; None: not counted
    wire_remark: str | None = None  # why bytes on the wire are unknown, or what is missing in them

    def row(self) -> dict[str, float | bool | str | None]:
        """Return the columns of a record; None is unknown."""
        values: dict[str, float | bool | str | None] = {}
        for column, (role, source, name) in COLUMNS.items():
            values[column] = _number(getattr(getattr(getattr(self, role), source), name))
        return {**values, AGREES: self.agrees, **{name: getattr(self, name) for name in WORDS}}

    @staticmethod
    def of_row(row: Mapping[str, Any]) -> Ledger:
        """Return the ledger whose columns a record holds, missing ones unknown; ValueError for another column."""
        others = sorted(set(row) - {*COLUMNS, AGREES, *WORDS})
        if others:
            raise ValueError(f"{others[0]} is no column of the ledger")
        words: dict[str, Any] = {name: row.get(name) for name in WORDS}
        ledger = Ledger(agrees=row.get(AGREES), **words)
        for column, (role, source, name) in COLUMNS.items():
            setattr(getattr(getattr(ledger, role), source), name, _number(row.get(column)))
        return ledger

    def _directions(self) -> Iterator[tuple[str, float, float | None, float]]:
        """Yield, where bytes were counted: the column, those bytes, the kernel's, and the messages counted."""
        for role in ("worker", "server"):
            volumes: RoleVolumes = getattr(self, role)
            for way in ("sent", "received"):
                counted = getattr(volumes.counted, f"bytes_{way}")
                if counted:
                    wire, messages = getattr(volumes.wire, f"bytes_{way}"), getattr(volumes.counted, f"messages_{way}")
                    yield f"bytes_{way}_per_{role}_per_step", counted, wire, messages or 0

    def carried(self) -> float | None:
        """Return the least share of the counted bytes, by direction and role, that the kernel saw; None if unknown."""
        if self.worker.counted.bytes_sent is None or self.worker.wire.bytes_sent is None:
            return None
        return min(((wire or 0) / counted for _, counted, wire, _ in self._directions()), default=1.0)

    def wire_ratios(self) -> dict[str, float]:
        """Return the kernel's bytes over counted bytes, by direction and role, where both are known and not 0."""
        return {column: wire / counted for column, counted, wire, _ in self._directions() if wire}

    def header_shares(self) -> dict[str, float]:
        """Return the most that headers add to counted bytes, as a share of these, by direction and role.

        0 where messages are not counted: it matters only for small messages, which compression makes.
        """
        return {column: HEADER_BYTES * messages / counted for column, counted, _, messages in self._directions()}


def predict(config: RunConfig) -> Prediction:
    """Return the closed form of a run's strategy; volumes are unknown if it has none."""
    form = config.kind.closed_form
    if form is None:
        return Prediction(Volume.unknown())
    return form(config, job_of(config))


def job_of(config: RunConfig) -> Job:
    """Return what the closed form of a config's volume depends on."""
    shape = config.gpt
    return Job(
        config.num_workers,
        shape.tensors,
        rows=shape.tensor_rows,
        in_block=shape.in_block,
        num_tokens=config.batch_size * shape.block_size,
        width=shape.n_embd,
        num_blocks=shape.n_layer,
        num_divided=shape.n_layer * (12 * shape.n_embd**2 + 7 * shape.n_embd),  # all but biases of rows, layer norms
        num_embedded=shape.vocab_size * shape.n_embd,
    )


def make_ledger(
    config: RunConfig, worker: RoleVolumes, server: RoleVolumes, source: WireSource = WireSource()
) -> Ledger:
    """Return what was counted and what the kernel saw beside the closed form, and whether they agree."""
    found = predict(config)
    worker = replace(worker, predicted=found.worker)
    server = replace(server, predicted=found.server) if found.server else server
    verdicts = [role.agrees(found.tolerance_bytes) for role in (worker, server)]
    known = [verdict for verdict in verdicts if verdict is not None]
    by = config.kind.bytes_counted_by if worker.counted.bytes_sent is not None else None
    ledger = Ledger(worker, server, all(known) if known else None, bytes_counted_by=by)
    if worker.wire.bytes_sent is None:
        return ledger
    seen, remark = source.judge(ledger.carried())
    if seen:
        return replace(ledger, wire_counted_by=source.by, wire_remark=remark)
    worker, server = (replace(role, wire=Volume.unknown()) for role in (worker, server))
    return replace(ledger, worker=worker, server=server, wire_remark=remark)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
