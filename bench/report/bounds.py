"""The limits of a report's cells: the shortest step that their links and computing allow, and what bounds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from bench.config import BadInput, RunConfig
from bench.durations import Durations, by_flops, durations
from bench.nodes.limits import Limits, is_known, limits

COLUMNS = ("compute_s", "worker_link_s", "server_link_s", "min_step_s")
UNKNOWN = ""


class Bounds:
    """The limits of a report's cells, as measured or with other links; only of cells whose links are known."""

    def __init__(self, summary: pd.DataFrame, configs: Mapping[str, RunConfig]) -> None:
        self.configs = dict(configs)
        self._known: dict[str, tuple[RunConfig, Durations]] = {}
        for row in summary.to_dict("records"):
            config = configs[row["cell"]]
            measured = row["status"] == "ok" or config.compute != "real"  # else the layers' times are not known
            if measured and is_known(config, row["allreduce_algorithm"]):
                self._known[row["cell"]] = config, durations_of(config, row)

    def __contains__(self, cell: str) -> bool:
        """Whether the limits of a cell are known."""
        return cell in self._known

    def __iter__(self) -> Iterator[str]:
        """Iterate over the cells whose limits are known."""
        return iter(self._known)

    def of(self, cell: str, link_factor: float = 1.0) -> Limits:
        """Return the limits of a cell, with all links `link_factor` times as fast."""
        return limits(*self._known[cell], link_factor)

    def tokens_per_s(self, cell: str, link_factor: float = 1.0) -> float:
        """Return the highest rate that the limits allow."""
        return self._known[cell][0].tokens_per_step / self.of(cell, link_factor).min_step_s

    def tokens_of_one_worker(self, cell: str) -> int:
        """Return the tokens of one worker's step."""
        config = self._known[cell][0]
        return config.tokens_per_step // config.num_workers

    def added_to(self, summary: pd.DataFrame) -> pd.DataFrame:
        """Return the summary with COLUMNS and `bounded_by`; blank where the links are not known."""
        found = [self.of(cell) if cell in self else None for cell in summary["cell"]]
        table = pd.DataFrame({name: [getattr(one, name, np.nan) for one in found] for name in COLUMNS})
        table["bounded_by"] = [one.bounded_by if one else UNKNOWN for one in found]
        return summary.join(table.set_index(summary.index)).copy()  # one block: adding columns is slow otherwise


def durations_of(config: RunConfig, row: Mapping[Any, Any]) -> Durations:
    """Return what the layers take: as configured for emulated compute, else the measured phases shared by FLOPs.

    The optimizer's time is at most the measured one: an earlier version slept for none.
    """
    if config.compute == "emulated":
        try:
            found = durations(config)
            return replace(found, optimizer_s=float(np.nanmin([found.optimizer_s, row["optimizer_s"]])))
        except BadInput:  # the file of the calibration is elsewhere
            pass
    if config.compute == "none":
        return by_flops(config.gpt, 0.0, 0.0, 0.0)
    return by_flops(config.gpt, row["forward_s"], row["backward_s"], row["optimizer_s"])
