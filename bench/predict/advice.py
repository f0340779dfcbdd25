"""Changes of one knob of a cell, and what each is predicted to gain at equal workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.config import BadInput, RunConfig, make_config
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.step import step_time

MORE_SERVERS = (1, 2)  # that may be added
WORTH_IT = 1.02  # a change that gains less than this factor is no advice


@dataclass(frozen=True)
class Advice:
    """A change of a cell's knobs. `gain`: predicted tokens per second with it over those without it."""

    text: str
    change: dict[str, Any]
    gain: float


def ranked(cell: Cell, calibration: ClusterCalibration) -> list[Advice]:
    """Return the changes that are predicted to gain something worth having, the largest gain first."""
    before = step_time(cell, calibration).step_s
    found = []
    for text, change in _changes(cell.config):
        try:
            changed = _changed(cell, change)
            gain = before / step_time(changed, calibration).step_s
        except BadInput:  # a combination that psring does not run
            continue
        if gain >= WORTH_IT and changed.config.unsupported() is None:
            found.append(Advice(text, change, gain))
    return sorted(found, key=lambda one: -one.gain)


def _changed(cell: Cell, change: dict[str, Any]) -> Cell:
    values = {name: getattr(cell.config, name) for name in cell.config.model_fields_set} | change
    return Cell(make_config(values, "change"), cell.ranks_per_node, cell.two_level, cell.algorithm)


def _changes(config: RunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a text and the knobs of each change that the strategy reads."""
    reads = config.kind.knobs
    if not config.kind.communicates or config.world_size == 1:
        return
    if config.speed_factor is not None:
        yield "workers of equal speed", {"speed_factor": None}
    if "wire_dtype" in reads and config.wire_dtype == "fp32" and config.compression == "none":
        yield "wire fp16", {"wire_dtype": "fp16"}
    if "bucket_bytes" in reads:
        yield "buckets of a quarter", {"bucket_bytes": max(1, config.bucket_bytes // 4)}
    if "cycle_time_s" in reads:
        yield "a cycle time of a quarter", {"cycle_time_s": config.cycle_time_s / 4}
    if config.kind.has_servers:
        yield from _of_servers(config)


def _of_servers(config: RunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    if config.placement != "colocated":
        for more in MORE_SERVERS:
            if config.num_servers + more <= config.num_workers:
                nodes = f"{more} more node{'s' * (more > 1)}"
                yield f"{more} more server{'s' * (more > 1)} ({nodes})", {"num_servers": config.num_servers + more}
        yield (
            f"colocated servers ({config.num_servers} node{'s' * (config.num_servers > 1)} fewer)",
            {"placement": "colocated", "num_servers": 0},
        )
    if config.sharding == "tensors":
        yield "ranges instead of whole tensors", {"sharding": "ranges"}
    if config.schedule == "fifo":
        yield "schedule priority", {"schedule": "priority"}
    if config.needs_norm and config.clip_norm is not None:
        yield "no clipping", {"clip_norm": None}
    if config.consistency == "bsp" and (config.compute_cv > 0 or config.speed_factor is not None):
        yield "consistency ssp, staleness 2", {"consistency": "ssp", "staleness": 2}
