"""What `psring predict` does: fit, predict, write the rows, and say in a table who is fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.config import BadInput, RunConfig
from bench.predict import grid, measured, table
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.crossings import MARGIN
from bench.predict.fit import Fit, fit
from bench.predict.grid import Change
from bench.predict.step import step_time
from bench.predict.table import Row
from strategies import catalogue

# Of a step predicted from data sheets alone: a factor of 1.5 either way is within a 90 % band.
SPREAD_UNMEASURED = 0.25
# A network that was not measured has no token bucket, and its nodes do not share this machine's cores.
OF_EMULATED_NODES = {"burst_bytes": 0.0, "cores": None}


@dataclass(frozen=True)
class Request:
    """What to predict: from a folder, or from a target's description alone."""

    folder: Path | None = None
    target: str | None = None
    sweep: Sequence[RunConfig] | None = None
    calibration: Path | None = None
    change: Change = field(default_factory=Change)
    price_per_node_hour: float | None = None


@dataclass(frozen=True)
class Answer:
    """The rows, and the fit that they come from."""

    fit: Fit
    rows: list[Row]
    heading: str
    configs: list[RunConfig]  # one per strategy, whose maps can be drawn
    change: Change


def predict(request: Request) -> Answer:
    """Return the predicted rows; BadInput if nothing was measured and no target is given, or every cell is refused."""
    grid.check(request.change)
    if request.folder is None:
        if request.target is None:
            raise BadInput("predict: give a results folder, or --target 'gpt2, 25gbit, a100 at 40% MFU, 8 nodes'")
        return _of_target(request, request.target)
    if request.target is not None:
        raise BadInput("--target needs no results folder; give --num-nodes, --link and --device with one")
    found, change = measured.read(request.folder), request.change
    asked = grid.of_sweep(request.sweep, change.ranks_per_node) if request.sweep is not None else None
    grid.check_servers(grid.templates(found), change)
    fitted = fit(found)
    if request.calibration is not None:
        fitted = replace(fitted, calibration=ClusterCalibration.read(request.calibration), samples=())
    if change.link is not None or change.device is not None:
        fitted = _without_emulation(fitted)
    if asked is not None:
        cells = asked
    elif change.num_nodes:
        cells = grid.changed(grid.templates(found), change, fitted.calibration, _rate(fitted))
    else:
        cells = [one.cell for one in found]
    rows = table.rows(fitted, cells, str(request.folder), request.price_per_node_hour)
    _check_any(rows)
    low, high = fitted.ranges.measured["nodes"]
    heading = (
        f"fitted to {len(found)} cells of {request.folder}, {low:.0f} to {high:.0f} nodes; "
        f"a cell that the fit has not seen is off by {fitted.spread:.1%}{kept_costs(request, fitted.calibration)}"
    )
    return Answer(fitted, rows, heading, grid.templates(found), change)


def _check_any(rows: Sequence[Row]) -> None:
    """Raise BadInput, with the first reason, if no row has numbers."""
    if all(row["status"] == "unsupported" for row in rows):
        raise BadInput(str(rows[0]["reason"]) if rows else "predict: no cell fits on so few nodes; give more")


def _of_target(request: Request, text: str) -> Answer:
    configs, change = grid.of_target(text)
    given = request.change
    change = replace(
        given, num_nodes=given.num_nodes or change.num_nodes, num_servers=given.num_servers or change.num_servers
    )
    grid.check_servers(configs, change)
    calibration = ClusterCalibration()
    if request.calibration is not None:
        calibration = ClusterCalibration.read(request.calibration)
    found = table.default_fit(calibration, SPREAD_UNMEASURED)
    cells = grid.changed(configs, change, calibration, _rate(found))
    rows = table.rows(found, cells, text, request.price_per_node_hour)
    _check_any(rows)
    return Answer(found, rows, f"{text}: from data sheets and default costs, nothing measured", configs, change)


def kept_costs(request: Request, costs: ClusterCalibration) -> str:
    """Return which costs of the measured hosts a prediction for other ones keeps; empty if it names no others."""
    changed_to = [word for word in (request.change.link, request.change.device) if word is not None]
    if not changed_to or request.calibration is not None:
        return ""
    return (
        f"\nfor {' and '.join(changed_to)}, latency {1e6 * costs.latency_s:.3g} µs, CPU time of a message "
        f"{1e6 * costs.message_cpu_s:.3g} µs, adding {1e9 * costs.add_s_per_byte:.2g} and copying "
        f"{1e9 * costs.copy_s_per_byte:.2g} ns a byte stay those of the measured hosts; --calibration gives others"
    )


def _without_emulation(fitted: Fit) -> Fit:
    def real(one: ClusterCalibration) -> ClusterCalibration:
        return one.model_copy(update=OF_EMULATED_NODES)

    return replace(fitted, calibration=real(fitted.calibration), samples=tuple(map(real, fitted.samples)))


def _rate(fitted: Fit) -> grid.PerSecond:
    """Return the predicted throughput of a cell, 0 where there is no prediction."""

    def rate(cell: Cell) -> float:
        try:
            return step_time(cell, fitted.calibration).tokens_per_s
        except BadInput:
            return 0.0

    return rate


def as_text(answer: Answer) -> str:
    """Return the heading, a line per row, and the fastest at each number of nodes."""
    lines = [answer.heading, ""]
    words = ("nodes", "strategy", "workers", "servers", "tokens/s", "90 % band", "per node", "bound", "beyond measured")
    shown = [words, *(_words(row) for row in answer.rows)]
    widths = [max(len(line[i]) for line in shown) for i in range(len(words))]
    left = {1, 7, 8}
    for line in shown:
        cells = (
            word.ljust(w) if i in left else word.rjust(w) for i, (word, w) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    lines += [""] + [_best(row, answer.rows) for row in answer.rows if row["best"]]
    return "\n".join(lines)


def _words(row: Row) -> tuple[str, ...]:
    first = (str(row["num_nodes"]), _name(row), str(row["num_workers"]), str(row["num_servers"]))
    if "tokens_per_s" not in row:
        return (*first, "", "", "", "", str(row["reason"]))
    low, high = (f"{float(str(row[key])):,.0f}" for key in ("tokens_per_s_low", "tokens_per_s_high"))
    efficiency = row["scaling_efficiency_per_node"]
    share = "" if efficiency is None else f"{float(str(efficiency)):.0%}"
    more = str(row["extrapolated"]) + (f"  {row['reason']}" if row.get("reason") else "")
    return (*first, f"{float(str(row['tokens_per_s'])):,.0f}", f"{low} to {high}", share, str(row["bounded_by"]), more)


def _name(row: Row) -> str:
    """Return a strategy with what tells its rows apart: the placement of servers, and the consistency if not bsp."""
    entry = catalogue.find(str(row["strategy"]))
    words = [entry.name] + [str(row["placement"])] * entry.has_servers
    return " ".join(words + [str(row["consistency"])] * (row["consistency"] != "bsp"))


def _best(row: Row, rows: Sequence[Row]) -> str:
    """Return a line on the fastest row, and on those on equal nodes from which the model cannot tell it."""
    nodes = row["num_nodes"]
    alike = [other for other in rows if other["num_nodes"] == nodes and other is not row and _as_fast(other, row)]
    if alike:
        names = ", ".join(_with_ranks(other) for other in (row, *alike))
        return f"no difference on {nodes} nodes (90 % bands overlap, or within {MARGIN:.0%}): {names}"
    price = row["price_per_million_tokens"]
    cost = "" if price is None else f", {float(str(price)):.3g} per million tokens"
    return f"fastest on {nodes} nodes: {_with_ranks(row)}{cost}"


def _as_fast(row: Row, best: Row) -> bool:
    """Whether a row's band reaches that of the best, or it is within the margin."""
    if row["status"] != "ok":
        return False
    speed, high, most, low = (
        float(str(one[key])) for one, keys in ((row, ("tokens_per_s", "tokens_per_s_high")),
                                               (best, ("tokens_per_s", "tokens_per_s_low"))) for key in keys
    )  # fmt: skip
    return high >= low or most <= speed * (1 + MARGIN)


def _with_ranks(row: Row) -> str:
    servers = f" + {row['num_servers']} servers" if row["num_servers"] else ""
    return f"{_name(row)} ({row['num_workers']} workers{servers})"
