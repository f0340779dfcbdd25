"""Predicted cells as rows, with the columns of summary.csv and some of its own."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.config import BadInput
from bench.devices import DEVICES
from bench.files import write_whole
from bench.predict import memory
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.fit import Fit, Ranges
from bench.predict.grid import alone_tokens_per_s
from bench.predict.simulate import expected

Row = dict[str, object]
COLUMNS = (
    "cell", "strategy", "placement", "consistency", "num_workers", "num_servers", "num_nodes", "ranks_per_node",
    "model", "num_parameters", "precision", "wire_dtype", "batch_size", "compute", "link",
    "tokens_per_s", "tokens_per_s_low", "tokens_per_s_high", "step_s", "compute_s", "exposed_communication_s",
    "worker_link_s", "server_link_s", "worker_cpu_s", "server_cpu_s", "straggler_s", "bounded_by",
    "bytes_sent_per_worker_per_step_predicted", "scaling_efficiency", "scaling_efficiency_per_node", "baseline",
    "worker_memory_bytes", "server_memory_bytes", "price_per_million_tokens", "extrapolated", "best",
    "status", "reason",
)  # fmt: skip
BASELINE = "1 worker alone, predicted"


def rows(fit: Fit, cells: Iterable[Cell], source: str, price_per_node_hour: float | None = None) -> list[Row]:
    """Return a row per cell; one that cannot be predicted has blank numbers, a status and a reason."""
    made = [_row(fit, cell, source, price_per_node_hour) for cell in cells]
    for nodes in {row["num_nodes"] for row in made}:
        same = [row for row in made if row["num_nodes"] == nodes and row["status"] == "ok"]
        if len(same) > 1:
            max(same, key=lambda row: float(str(row["tokens_per_s"])))["best"] = True
    return sorted(made, key=lambda row: (int(str(row["num_nodes"])), str(row["strategy"]), str(row["placement"])))


def _row(fit: Fit, cell: Cell, source: str, price: float | None) -> Row:
    config = cell.config
    names = ("strategy", "placement", "consistency", "num_workers", "num_servers", "model", "precision", "wire_dtype",
             "batch_size", "compute", "link")  # fmt: skip
    row: Row = {
        "cell": config.digest(), **{name: getattr(config, name) for name in names},
        "num_nodes": cell.num_nodes, "ranks_per_node": cell.ranks_per_node,
        "num_parameters": cell.num_parameters, "status": "ok", "best": False,
    }  # fmt: skip
    try:
        fit.check_regime(cell, source)
        return row | _numbers(fit, cell, price)
    except BadInput as error:
        return row | {"status": "unsupported", "reason": str(error)}


def _numbers(fit: Fit, cell: Cell, price: float | None) -> Row:
    config, calibration = cell.config, fit.calibration
    found, half = expected(cell, calibration), fit.half_band(cell)
    alone = alone_tokens_per_s(cell, calibration)
    per_worker = found.tokens_per_s / alone / config.num_workers if alone else None
    equal_nodes = cell.num_nodes * cell.ranks_per_node
    hour = 3600 * found.tokens_per_s / 1e6
    return {
        "tokens_per_s": found.tokens_per_s,
        "tokens_per_s_low": found.tokens_per_s * math.exp(-half),
        "tokens_per_s_high": found.tokens_per_s * math.exp(half),
        **{name: getattr(found, name) for name in (
            "step_s", "compute_s", "exposed_communication_s", "worker_link_s", "server_link_s", "worker_cpu_s",
            "server_cpu_s", "straggler_s",
        )},
        "bounded_by": found.bound,
        "bytes_sent_per_worker_per_step_predicted": bytes_sent(cell),
        "scaling_efficiency": per_worker,
        "scaling_efficiency_per_node": per_worker and per_worker * config.num_workers / equal_nodes,
        "baseline": BASELINE,
        "price_per_million_tokens": None if price is None else price * cell.num_nodes / hour,
        "extrapolated": _describe(fit.ranges.beyond(cell, calibration)),
        **_memory(cell),
    }  # fmt: skip


def _describe(beyond: Mapping[str, float]) -> str:
    """{"nodes": 64.0} -> 'nodes ×64': by how much a prediction leaves what was measured; empty: it does not."""
    return ", ".join(f"{name} ×{factor:.3g}" for name, factor in sorted(beyond.items()))


def bytes_sent(cell: Cell) -> float | None:
    """Return the bytes that a rank which sends between nodes sends per step."""
    form = cell.config.kind.closed_form
    return None if form is None else form(cell.config, cell.job).worker.bytes_sent


def _memory(cell: Cell) -> Row:
    """Return what the ranks need; a status if the device named in the config has less."""
    worker, server = memory.worker_bytes(cell), memory.server_bytes(cell)
    row: Row = {"worker_memory_bytes": worker, "server_memory_bytes": server}
    name = cell.config.device_model
    if name is not None and worker > DEVICES[name].memory_bytes:
        row |= {
            "status": "out_of_memory",
            "reason": f"a worker needs about {worker / 1e9:.0f} GB, {name} has {DEVICES[name].memory_bytes / 1e9:.0f}",
        }
    return row


def write(path: Path, found: Sequence[Row]) -> None:
    """Write rows as CSV; a blank is unknown."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_whole(path, text.getvalue())


def default_fit(calibration: ClusterCalibration, spread: float) -> Fit:
    """Return a fit without runs: every regime, a band of one spread."""
    return Fit(calibration, (), spread, Ranges({}))
