"""What one run found, as the few lines that `psring run` ends with."""

from __future__ import annotations

from bench.config import MIN_CONVERGENCE
from bench.ledger import Ledger
from bench.records import PlannedRun, RunRecord
from bench.summary import Summary

PHASES = ("data", "forward", "backward", "exposed_communication", "optimizer")


def describe(planned: PlannedRun, record: RunRecord) -> str:
    """Return a block of lines: what ran and whether it is valid, then speed, phases, bytes, loss and gate."""
    status = record.status + (f": {record.reason}" if record.reason else "")
    lines = [f"{planned.describe()}: {status}" + "".join(f" [{label}]" for label in record.labels)]
    if record.summary:
        found = {
            "speed": _speed(record.summary),
            "phases": _phases(record.summary),
            "bytes": _bytes(record.ledger) if record.ledger and record.config.world_size > 1 else "",
            "ring": f"no ring at messages of {sizes} bytes" if (sizes := record.summary.not_ring_bytes) else "",
            "loss": _loss(record.summary),
            "gate": _gate(record.summary),
        }
        lines += [f"  {name:<8}{text}" for name, text in found.items() if text]
    return "\n".join(lines)


def _speed(found: Summary) -> str:
    return (
        f"{found.tokens_per_s:,.0f} tokens/s; a step takes {_milliseconds(found.step_s)} ms (median), "
        f"{_milliseconds(found.step_s_p95)} ms (95th percentile)"
    )


def _phases(found: Summary) -> str:
    times = (f"{name.replace('_', ' ')} {_milliseconds(getattr(found, f'{name}_s'))}" for name in PHASES)
    return ", ".join(times) + " ms"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 1 else f"{seconds * 1e3:.3g}"


def _bytes(ledger: Ledger) -> str:
    """Return what the mean worker sent per step, from each source that knows."""
    of = ledger.worker
    found = []
    if of.predicted.bytes_sent is not None:
        found.append(f"{_size(of.predicted.bytes_sent)} predicted")
    if of.counted.bytes_sent is not None:
        disagrees = " (DISAGREES)" if ledger.agrees is False else ""
        found.append(f"{_size(of.counted.bytes_sent)} {ledger.bytes_counted_by}{disagrees}")
    if of.wire.bytes_sent is not None:
        found.append(f"{_size(of.wire.bytes_sent)} on the wire ({ledger.wire_counted_by})")
    remark = f"; {ledger.wire_remark}" if ledger.wire_remark else ""
    return f"sent by a worker per step: {', '.join(found) or 'unknown'}{remark}"


def _size(nbytes: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= size:
            return f"{nbytes / size:.4g} {unit}"
    return f"{nbytes:.0f} B"


def _loss(found: Summary) -> str:
    if found.first_loss is None or found.final_loss is None:
        return ""
    held_out = "" if found.held_out_loss is None else f"; held-out {found.held_out_loss:.4f}"
    return f"training {found.first_loss:.4f} -> {found.final_loss:.4f}{held_out}"


def _gate(found: Summary) -> str:
    if found.equivalence_error is not None:
        return f"equivalence {found.equivalence_error:.2g} of at most {found.equivalence_bound:.2g}"
    if found.convergence is not None:
        return f"convergence {found.convergence:.2f} of at least {MIN_CONVERGENCE}"
    return ""
