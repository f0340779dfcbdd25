"""The measured cells of a results folder, as a fit and a validation read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import records
from bench.config import BadInput, RunConfig
from bench.predict.cell import Algorithm, Cell


@dataclass(frozen=True)
class Measured:
    """A cell with its ok launches. `seconds`: of one step in each, tokens of all workers over tokens_per_s."""

    name: str
    cell: Cell
    seconds: tuple[float, ...]
    duplex_factor: float | None
    forward_backward_s: float  # median over launches, as all of the following
    optimizer_s: float
    data_s: float
    exposed_communication_s: float

    @property
    def config(self) -> RunConfig:
        """The cell's knobs."""
        return self.cell.config

    @property
    def step_s(self) -> float:
        """Median seconds of a step."""
        return median(self.seconds)

    @property
    def tokens_per_s(self) -> float:
        """Median throughput."""
        return self.config.tokens_per_step / self.step_s


def read(folder: Path) -> list[Measured]:
    """Return the cells with ok launches of a folder; BadInput if there is none."""
    found = group(records.read(folder))
    if not found:
        raise BadInput(f"{folder}: no ok run in it; a prediction needs measured cells, or --target without a folder")
    return found


def group(runs: Iterable[records.RunRecord]) -> list[Measured]:
    """Return the cells of runs; without those of which one launch failed the equivalence gate, or that cannot be told.

    An allreduce that was no ring counts as Rabenseifner's, which Open MPI runs for large messages if it is not told.
    """
    launches: dict[str, list[records.RunRecord]] = defaultdict(list)
    bad = set()
    for run in runs:
        if run.status == "ok":
            launches[run.cell].append(run)
        if run.status == "invalid" and not run.is_rejected:
            bad.add(run.cell)
    return [_measured(name, found) for name, found in sorted(launches.items()) if name not in bad]


def _measured(name: str, runs: list[records.RunRecord]) -> Measured:
    config, found = runs[0].config, [run.summary for run in runs if run.summary]
    algorithm: Algorithm = "ring"
    if any(one.allreduce_algorithm == "not_ring" for one in found):
        algorithm = "rabenseifner"
    nodes = max(one.num_nodes for one in found)
    ranks = max(1, config.num_workers // max(1, nodes - config.num_servers)) if nodes > 1 else config.num_workers
    duplex = [one.duplex_factor for one in found if one.duplex_factor is not None]
    return Measured(
        name=name,
        cell=Cell(config, ranks_per_node=ranks, two_level=False, algorithm=algorithm),
        seconds=tuple(config.tokens_per_step / one.tokens_per_s for one in found),
        duplex_factor=median(duplex) if duplex else None,
        forward_backward_s=median(one.forward_s + one.backward_s for one in found),
        optimizer_s=median(one.optimizer_s for one in found),
        data_s=median(one.data_s for one in found),
        exposed_communication_s=median(one.exposed_communication_s for one in found),
    )
