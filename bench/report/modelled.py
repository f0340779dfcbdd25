"""What the model of cost says of a report's cells: the parts of their steps, their speed, and that of more nodes."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench import records
from bench.config import BadInput, RunConfig
from bench.predict import explain, measured
from bench.predict.cell import Cell
from bench.predict.crossings import same_work
from bench.predict.explain import MAX_FITTED, Explanation
from bench.predict.fit import Fit, fit
from bench.predict.grid import Change, changed, templates
from bench.predict.measured import Measured
from bench.predict.simulate import expected
from bench.report.panels import SIZE

MAX_CELLS = 60  # of which the parts of a step are shown; `psring explain` prints all
FURTHER = (2, 4)  # times the most nodes of a curve
COLUMNS = ("cell", SIZE, "predicted", "predicted_low", "predicted_high")


class Modelled(NamedTuple):
    """What is known of cells, by name; without a fit nothing is predicted, and `why_not` says why."""

    explained: dict[str, Explanation]
    fit: Fit | None
    predicted: pd.DataFrame  # COLUMNS: tokens per second with 90 % band; more nodes have the cell that they continue
    configs: list[RunConfig]  # the strategies of the maps: equal work, two or more
    link: str | None  # of those strategies, if they have one rate
    most_nodes: int
    num_known: int
    unknown: dict[str, int]  # why cells are not divided into parts: number of cells
    why_not: str


def of_runs(kept: Sequence[records.RunRecord]) -> Modelled:
    """Fit the model to the cells whose links are known; never raises for what cannot be predicted."""
    cells = measured.group(kept)
    reasons = {one.name: explain.why_unknown(one) for one in cells if one.config.world_size > 1}
    known = [one for one in cells if explain.is_known(one)]
    unknown = dict(Counter(filter(None, reasons.values())))
    nothing = Modelled({}, None, pd.DataFrame(columns=list(COLUMNS)), [], None, 0, len(known), unknown, "")
    if not any(one.config.world_size > 1 for one in known):
        why = "; ".join(unknown) or "no cell has more than one rank"
        return nothing._replace(why_not=why)
    try:
        fitted = fit(known[:: math.ceil(len(known) / MAX_FITTED)])
        found = {one.name: explain.of_cell(one, fitted.calibration) for one in known[:MAX_CELLS]}
        predicted = pd.DataFrame(list(_predicted(known[:MAX_CELLS], fitted)), columns=list(COLUMNS))
    except (BadInput, ArithmeticError, np.linalg.LinAlgError) as error:
        return nothing._replace(why_not=str(error))
    most, configs = max(one.cell.num_nodes for one in known), _rivals(known)
    link = next((config.link for config in configs if config.link and "=" not in config.link), None)
    return nothing._replace(
        explained=found, fit=fitted, predicted=predicted, configs=configs, link=link, most_nodes=most
    )  # fmt: skip


def _predicted(known: Sequence[Measured], fitted: Fit) -> Iterator[tuple[object, ...]]:
    """Yield a row per cell, and rows of FURTHER times as many nodes after the largest of each curve."""
    curves: dict[str, list[Measured]] = defaultdict(list)
    for one in known:
        yield _row(one.name, one.cell, fitted)
        curves[repr(_of_curve(one.config))].append(one)
    for curve in curves.values():
        largest = max(curve, key=lambda one: one.cell.num_nodes)
        if len({one.cell.num_nodes for one in curve}) > 1:
            for factor in FURTHER:
                yield from (_row(largest.name, cell, fitted) for cell in _larger(largest, factor, fitted))


def _of_curve(config: RunConfig) -> dict[str, object]:
    """Return the knobs that cells of one curve share; servers that are as many as the workers are one curve."""
    values = config.model_dump(exclude={"num_workers", "slowdown"})
    return values | {"num_servers": "per worker"} if _per_worker(config) else values


def _per_worker(config: RunConfig) -> bool:
    return config.num_servers > 1 and config.num_servers == config.num_workers


def _larger(one: Measured, factor: int, fitted: Fit) -> list[Cell]:
    servers = one.config.num_servers * (factor if _per_worker(one.config) else 1)
    change = Change(
        num_nodes=(one.cell.num_nodes * factor,), num_servers=(servers,) if servers else (),
        ranks_per_node=one.cell.ranks_per_node,
    )  # fmt: skip
    return changed([one.config], change, fitted.calibration, lambda _: 0.0)


def _row(name: str, cell: Cell, fitted: Fit) -> tuple[object, ...]:
    rate, half = expected(cell, fitted.calibration).tokens_per_s, fitted.half_band(cell)
    return name, cell.config.world_size, rate, rate * math.exp(-half), rate * math.exp(half)


def _rivals(known: Sequence[Measured]) -> list[RunConfig]:
    """Return the configs of equal work of which the most differ; none if there are fewer than two strategies."""
    found = [config for config in templates(known) if config.kind.communicates and config.synchronous]
    groups = [
        [other for other in found if same_work(config, other) and other.wire_dtype == config.wire_dtype]
        for config in found
    ]
    most = max(groups, key=len, default=[])
    return most if len({(one.strategy, one.placement) for one in most}) > 1 else []
