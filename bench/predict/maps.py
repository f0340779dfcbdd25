"""Who is fastest over nodes and links, and over nodes and model sizes, at equal nodes and at equal workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.config import BadInput, RunConfig
from bench.links import parse_rate
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.crossings import MARGIN
from bench.predict.fit import Fit
from bench.predict.grid import Change, changed
from bench.predict.step import step_time
from bench.shape import PRESETS

NODES = tuple(2**i for i in range(13))  # 1 to 4,096
LINKS = tuple(f"{rate}mbit" for rate in (100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000, 400_000))
MODELS = tuple(PRESETS)


@dataclass(frozen=True)
class Square:
    """The fastest strategy at one point, and how many times as fast as the second it is."""

    nodes: int
    across: str  # the link or the model
    winner: str
    lead: float
    decided: bool  # whether the lead exceeds the margin, and the 90 % bands of the first two do not overlap


def winners(
    configs: Sequence[RunConfig], fit: Fit, change: Change, across: Sequence[str],
    equal_workers: bool = False, nodes: Sequence[int] = NODES,
) -> list[Square]:  # fmt: skip
    """Return the winner at each number of nodes and each link (or model, if `across` are presets).

    Equal workers: dedicated servers are nodes beside the workers instead of in their place, a quarter as many.
    """
    of_models = across[0] in PRESETS
    squares = []
    for value in across:
        changed_to = replace(change, model=value) if of_models else replace(change, link=value)
        for number in nodes:
            rates: dict[str, tuple[float, Cell]] = {}
            for config in configs:
                for cell in _cells(config, fit.calibration, changed_to, number, equal_workers):
                    try:
                        rate = step_time(cell, fit.calibration).tokens_per_s
                    except BadInput:
                        continue
                    label = label_of(cell.config)
                    rates[label] = max((rate, cell), rates.get(label, (0.0, cell)), key=lambda found: found[0])
            if len(rates) > 1:
                best, second, *_ = sorted(rates, key=lambda label: -rates[label][0])
                lead = rates[best][0] / rates[second][0]
                squares.append(Square(number, value, best, lead, decided(lead, rates[best][1], rates[second][1], fit)))
    return squares


def decided(lead: float, best: Cell, second: Cell, fit: Fit) -> bool:
    """Return whether a lead of one cell over another exceeds the margin and what the model may be off by."""
    if lead <= 1 + MARGIN or math.log(lead) <= fit.half_band_of_distance(best) + fit.half_band_of_distance(second):
        return False  # without the slower part of the bands
    return math.log(lead) > fit.half_band(best) + fit.half_band(second)


def _cells(
    config: RunConfig, calibration: ClusterCalibration, change: Change, nodes: int, equal_workers: bool
) -> list[Cell]:
    """Return the one cell of a config on so many nodes (or workers' nodes); no cell where none fits."""
    served = config.kind.has_servers and config.placement != "colocated"
    servers = max(1, nodes // 4)
    total = nodes + servers if served and equal_workers else nodes
    given = replace(change, num_nodes=(total,), num_servers=(servers,) if served else ())
    return changed([config], given, calibration, lambda _: 0.0)


def label_of(config: RunConfig) -> str:
    """Return a strategy's title, with the placement of its servers."""
    return f"{config.placement} servers" if config.kind.has_servers else config.kind.title


def point(configs: Sequence[RunConfig]) -> tuple[str | None, str]:
    """Return the link and the model that a map's user has."""
    links = [config.link for config in configs if config.link and "=" not in config.link]
    return (min(LINKS, key=lambda link: abs(parse_rate(link) - parse_rate(links[0]))) if links else None), configs[
        0
    ].model
