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


@dataclass(frozen=True)
class RoleVolumes:
    """What the mean rank of a role moves in one step, by source; unknown where there is no such rank."""

    counted: Volume = field(default_factory=Volume.unknown)  # by the strategy, at its own buffers
    predicted: Volume = field(default_factory=Volume.unknown)  # by the closed form
    wire: Volume = field(default_factory=Volume.unknown)  # by the kernel, on the rank's link, headers included

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
class Ledger:
    """The volumes of the mean worker and the mean dedicated server, and whether the counts are the closed form's."""

    worker: RoleVolumes = field(default_factory=RoleVolumes)
    server: RoleVolumes = field(default_factory=RoleVolumes)
    agrees: bool | None = None  # None: nothing could be compared

    def row(self) -> dict[str, float | bool | None]:
        """Return the columns of a record; None is unknown."""
        values: dict[str, float | bool | None] = {}
        for column, (role, source, name) in COLUMNS.items():
            values[column] = _number(getattr(getattr(getattr(self, role), source), name))
        return {**values, AGREES: self.agrees}

    @staticmethod
    def of_row(row: Mapping[str, Any]) -> Ledger:
        """Return the ledger whose columns a record holds, missing ones unknown; ValueError for another column."""
        others = sorted(set(row) - {*COLUMNS, AGREES})
        if others:
            raise ValueError(f"{others[0]} is no column of the ledger")
        ledger = Ledger(agrees=row.get(AGREES))
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
    return form(config, Job(config.num_workers, config.gpt.num_parameters, 4 + 12 * config.gpt.n_layer))


def make_ledger(config: RunConfig, worker: RoleVolumes, server: RoleVolumes) -> Ledger:
    """Return what was counted and what the kernel saw beside the closed form, and whether they agree."""
    found = predict(config)
    worker = replace(worker, predicted=found.worker)
    server = replace(server, predicted=found.server) if found.server else server
    verdicts = [role.agrees(found.tolerance_bytes) for role in (worker, server)]
    known = [verdict for verdict in verdicts if verdict is not None]
    return Ledger(worker, server, all(known) if known else None)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
