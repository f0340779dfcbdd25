"""Ring against parameter server: who was faster on equal work, by how much, and from which size on.

Pure functions of the frame that `records.frame` gives. Launches are compared in pairs of the same repeat, so that
drift between repeats cancels. A winner needs an interval that leaves out 1; otherwise it is a tie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.intervals import Estimate, confidence, paired_interval
from bench.report.cells import CONFIG_FIELDS, HARNESS, PLACES, TOPOLOGY, judged, order_of, place_of, throughputs

RINGS = ("ring_allreduce", "mpi_ring")
SERVERS = ("parameter_server",)
EQUAL = {"workers": "num_workers", "ranks": "world_size"}
WORK = tuple(field for field in CONFIG_FIELDS if field not in HARNESS | TOPOLOGY)

Samples = dict[str, dict[int, float]]
Row = Mapping[Any, Any]


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The config of every cell that has an ok launch, its place, world size and median rate; indexed by cell."""
    ok = runs[runs["status"] == "ok"]
    cells = ok.assign(place=place_of(ok)).drop_duplicates("cell").set_index("cell").sort_index()
    cells = cells[[*CONFIG_FIELDS, "place"]].copy()
    cells["world_size"] = cells["num_workers"] + cells["num_servers"]
    cells["tokens_per_s"] = ok.groupby("cell")["tokens_per_s"].median()
    return cells


def same(cells: pd.DataFrame, fields: list[str], sort: bool = True) -> Iterable[tuple[Any, pd.DataFrame]]:
    """Group cells that agree in some fields; only those that vary at all are looked at, for there are many."""
    apart = [field for field in fields if cells[field].nunique(dropna=False) > 1]
    return cells.groupby(apart, dropna=False, sort=sort) if apart else [((), cells)]


def duels(runs: pd.DataFrame) -> pd.DataFrame:
    """Ring against parameter server on equal work, at equal workers and at equal ranks.

    One row per work (precision, batch_size, wire_dtype, …), place, kind of equality and size that both ran; of several
    cells of one topology the fastest. `ratio` is ring ÷ server in tokens_per_s.
    """
    runs = judged(runs)
    samples = throughputs(runs)
    rows = [
        {"equal": equal, "size": size, **_duel(ring, server, samples)}
        for equal, size, ring, server in _pairs(finished(runs))
    ]
    table = pd.DataFrame([row for row in rows if row["n"]])  # a pair that shares no repeat says nothing
    if table.empty:
        return table
    places = table["place"].map(PLACES.index)
    table = table.sort_values(["precision", "batch_size"], key=order_of, kind="stable")
    return table.loc[places.loc[table.index].sort_values(kind="stable").index].reset_index(drop=True)


def _pairs(cells: pd.DataFrame) -> Iterator[tuple[str, int, Row, Row]]:
    """Kind of equality, size, and the fastest cell of either topology, wherever both ran the same work.

    Servers that do not wait (asp, ssp) learn less from a token: their speed alone proves nothing, so they stay out.
    """
    cells = cells[cells["consistency"] == "bsp"].sort_values("tokens_per_s").reset_index()
    for _, arms in same(cells, [*WORK, "place"]):
        rows = arms.to_dict("records")
        ring, server = ([row for row in rows if row["strategy"] in names] for names in (RINGS, SERVERS))
        for equal, column in EQUAL.items():
            # Slow cells come first, so that the fastest of a size is the one that stays.
            rings, servers = ({int(row[column]): row for row in arm} for arm in (ring, server))
            for size in sorted(rings.keys() & servers.keys()):
                yield equal, size, rings[size], servers[size]


def _duel(ring: Row, server: Row, samples: Samples) -> dict[str, object]:
    ratio, pairs = paired_interval(samples[ring["cell"]], samples[server["cell"]])
    return {
        **{field: server[field] for field in (*WORK, "place", "num_servers")},
        "ring": ring["cell"], "server": server["cell"], **judgement(ratio, pairs, "ring", "server"),
    }  # fmt: skip


def judgement(ratio: Estimate, n: int, above: str, below: str) -> dict[str, object]:
    """The columns of a ratio: a winner only where the interval leaves 1 out."""
    verdict = "unknown" if np.isnan(ratio.low) else "tie"
    if ratio.low > 1:
        verdict = above
    elif ratio.high < 1:
        verdict = below
    return {
        "ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high,
        "n": n, "confidence": confidence(n), "verdict": verdict,
    }  # fmt: skip


def crossovers(table: pd.DataFrame) -> pd.DataFrame:
    """From which size on the winner at the largest size wins without a break; one row per work, place and equality.

    `from_size` is the smallest size of that unbroken row of equal verdicts, and the ratio is the one measured there.
    """
    if table.empty:
        return table
    rows = []
    for _, found in same(table, [*WORK, "place", "equal"], sort=False):
        by_size = found.sort_values("size")
        others = by_size[by_size["verdict"] != by_size["verdict"].iloc[-1]]
        start = by_size[by_size["size"] > (others["size"].max() if len(others) else -np.inf)].iloc[0]
        rows.append({**start.to_dict(), "from_size": start["size"], "largest_size": by_size["size"].iloc[-1]})
    return pd.DataFrame(rows).drop(columns="size")


def precision_effects(runs: pd.DataFrame) -> pd.DataFrame:
    """Every cell in another precision than fp32 against its twin in fp32, paired; `ratio` is of tokens_per_s."""
    runs = judged(runs)
    samples, cells = throughputs(runs), finished(runs)
    config = cells.to_dict("index")
    rows: list[dict[Any, Any]] = []
    for _, twins in same(cells, [field for field in CONFIG_FIELDS if field != "precision"]):
        for one in twins.index[twins["precision"] == "fp32"]:
            for other in twins.index[twins["precision"] != "fp32"]:
                ratio, pairs = paired_interval(samples[str(other)], samples[str(one)])
                rows.append({**config[other], **judgement(ratio, pairs, "faster", "slower")})
    table = pd.DataFrame(rows)
    order = ["precision", "batch_size", "strategy", "num_servers", "num_workers"]
    return table.sort_values(order, key=order_of, kind="stable", ignore_index=True) if rows else table
