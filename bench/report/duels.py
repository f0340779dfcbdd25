"""Ring-allreduce against every arrangement of parameter servers on equal work, and each precision against fp32.

Pure functions of the table that `records.frame` returns; `verdicts` says what a verdict is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from bench.report.cells import (
    CONFIG_FIELDS,
    HARNESS,
    PLACES,
    TOPOLOGY,
    is_kind,
    judged,
    measured_runs,
    order_of,
    place_of,
    throughputs,
)
from bench.report.verdicts import MARGIN, MIN_PAIRS, Ratio, Verdict, judge, paired
from strategies import catalogue

WORK = tuple(field for field in CONFIG_FIELDS if field not in HARNESS | TOPOLOGY)
BASES = {False: "accepted", True: "with rejected"}
# Knobs of the servers that a name states in words or that an axis shows.
NAMED = {"strategy", "num_workers", "num_servers", "placement", "consistency"}

Samples = dict[str, dict[int, float]]
Row = Mapping[Any, Any]


def finished(runs: pd.DataFrame, with_rejected: bool = False) -> pd.DataFrame:
    """Config, place, num_nodes, world_size and median rate of every cell that has an ok launch; indexed by cell.

    With rejected launches, also of cells that have no other.
    """
    ok = runs[runs["status"] == "ok"]
    found = measured_runs(runs, with_rejected)
    first = found.assign(place=place_of(found)).drop_duplicates("cell").set_index("cell").sort_index()
    first["world_size"] = first["num_workers"] + first["num_servers"]
    medians, with_all = (table.groupby("cell")["tokens_per_s"].median() for table in (ok, found))
    first["tokens_per_s"] = medians.reindex(first.index).fillna(with_all)
    return first[[*CONFIG_FIELDS, "place", "num_nodes", "world_size", "tokens_per_s"]]


def same(table: pd.DataFrame, fields: list[str], sort: bool = True) -> Iterable[tuple[Any, pd.DataFrame]]:
    """Groups of rows that agree in the given columns."""
    apart = [field for field in fields if table[field].nunique(dropna=False) > 1]  # grouping by few columns is faster
    return table.groupby(apart, dropna=False, sort=sort) if apart else [((), table)]


def duels(runs: pd.DataFrame, margin: float = MARGIN) -> pd.DataFrame:
    """One row per comparison of a server cell with a ring cell on equal work, at equal nodes and at equal workers.

    Columns: those of WORK, `model`, `place`, `unit` (nodes, or ranks if a node has several), `equal` (the unit, or
    workers), `size` (how many), `ring` and `server` (cells), `ring_name`, `server_name`, `world_size` (of the server
    cell) and those of `judgement` and `Rejections.columns`; `ratio` is ring ÷ server in tokens_per_s, and a verdict
    names the faster one, "ring" or "server". A pair that is equal in nodes and in workers has one row, at equal nodes.
    """
    runs = judged(runs)
    rejections = Rejections(runs)
    rows = []
    for equal, ring, server in _pairs(finished(runs, with_rejected=True)):
        ratio, more = rejections.compare(ring["cell"], server["cell"])
        if ratio.n:
            rows.append({**_described(equal, ring, server), **more, "judged": ratio})
    table = _with_verdicts(rows, margin, above="ring", below="server")
    if table.empty:
        return table
    table = table.sort_values(["num_servers", "server_name", "equal", "size"], kind="stable")
    table = table.sort_values(["precision", "batch_size"], key=order_of, kind="stable")
    places = table["place"].map(PLACES.index).sort_values(kind="stable")
    return table.loc[places.index].reset_index(drop=True)


class Rejections:
    """Compares cells without and with the launches that the guard rejected."""

    def __init__(self, runs: pd.DataFrame) -> None:
        self._accepted, self._every = (throughputs(runs, with_rejected=yes) for yes in (False, True))
        self._count = runs[runs["rejected"]].groupby("cell").size().to_dict()
        self._slowed = slowed_at_most(runs)

    def compare(self, one: str, other: str) -> tuple[Ratio, dict[str, object]]:
        """Return the ratio of two cells' tokens_per_s, and the columns about their rejected launches.

        These are `rejected` (how many of both cells), `with_rejected` (the Ratio that includes them) and `basis`:
        `accepted`, or `with rejected` where the accepted launches alone are too few for a verdict. Such a ratio is
        judged with the disturbance of the more disturbed cell added to the margin: a large effect shows in spite of a
        small disturbance.
        """
        ratio = paired(self._accepted.get(one, {}), self._accepted.get(other, {}))
        every = paired(self._every.get(one, {}), self._every.get(other, {}))
        needed = ratio.n < MIN_PAIRS and every.n > ratio.n
        if needed:
            disturbance = max(self._of_pairs(one, other), self._of_pairs(other, one))
            ratio = every = every._replace(disturbance=disturbance)
        count = sum(self._count.get(cell, 0) for cell in (one, other))
        return ratio, {"rejected": count, "basis": BASES[needed], "with_rejected": every}

    def _of_pairs(self, one: str, other: str) -> float:
        """By which share others may have slowed a cell in the repeats that it shares with another: geometric mean."""
        common = self._every[one].keys() & self._every[other].keys()
        return math.expm1(fmean(self._slowed[one][repeat] for repeat in common))


def slowed_at_most(runs: pd.DataFrame) -> dict[str, dict[int, float]]:
    """By cell and repeat the mean log of the factor by which others may have slowed its launches; accepted ones by 1.

    The mean over repeats is what the mean log ratio of two cells may be off by.
    """
    found = measured_runs(runs, with_rejected=True)
    shares = found["disturbance"].where(found["rejected"], 0.0).astype(float).fillna(0.0)
    logs: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell, repeat, log in zip(found["cell"], found["repeat"], np.log1p(shares), strict=True):
        logs[str(cell)][int(repeat)].append(float(log))
    return {cell: {repeat: fmean(each) for repeat, each in repeats.items()} for cell, repeats in logs.items()}


def _pairs(cells: pd.DataFrame) -> Iterator[tuple[str, Row, Row]]:
    """What is equal (world_size or num_workers), ring cell and server cell, wherever both ran the same work.

    Asynchronous servers (asp, ssp) are left out: they learn less from a token. The ring is that of the first library
    in the catalogue that has a cell of the size, with the fastest of its settings.
    """
    cells = cells[cells["consistency"] == "bsp"].sort_values("tokens_per_s").reset_index()
    cells["server_name"] = server_names(cells)
    for _, arms in same(cells, [*WORK, "place"]):
        rows = arms.to_dict("records")
        servers = [row for row in rows if catalogue.find(row["strategy"]).has_servers]
        rings = [row for row in rows if catalogue.find(row["strategy"]).family == catalogue.RING]
        rings.sort(key=lambda row: catalogue.order(row["strategy"]), reverse=True)
        by_size = {int(row["num_workers"]): row for row in rings}  # the last one of a size stays
        for server in servers:
            for equal in ("world_size", "num_workers") if server["num_servers"] else ("world_size",):
                if int(server[equal]) in by_size:
                    yield equal, by_size[int(server[equal])], server


def server_names(cells: pd.DataFrame) -> pd.Series:
    """What each server cell ran, blank for others: 'one dedicated server', 'colocated servers, chunk_bytes 4096'."""
    served = is_kind(cells, "has_servers")
    apart = [field for field in CONFIG_FIELDS if field in TOPOLOGY - NAMED and cells.loc[served, field].nunique() > 1]
    names = [_server_name(row, apart) for row in cells[served].to_dict("records")]
    return pd.Series(names, index=cells.index[served], dtype="object").reindex(cells.index, fill_value="")


def _server_name(cell: Row, apart: list[str]) -> str:
    count = "one dedicated server" if cell["num_servers"] == 1 else f"{cell['num_servers']} dedicated servers"
    names = {"dedicated": count, "colocated": "colocated servers", "mixed": f"colocated servers and {count}"}
    knobs = [f"{field} {cell[field]}" for field in apart if pd.notna(cell[field])]
    return ", ".join([names[cell["placement"]], *knobs])


def _described(equal: str, ring: Row, server: Row) -> dict[str, object]:
    unit = "nodes" if all(row["num_nodes"] == row["world_size"] for row in (ring, server)) else "ranks"
    return {
        "equal": "workers" if equal == "num_workers" else unit, "unit": unit, "size": int(server[equal]),
        **{field: server[field] for field in (*WORK, "model", "place", "num_servers")},
        "ring": ring["cell"], "server": server["cell"], "world_size": int(server["world_size"]),
        "ring_name": catalogue.find(ring["strategy"]).phrase, "server_name": server["server_name"],
    }  # fmt: skip


def _with_verdicts(rows: list[dict[str, Any]], margin: float, above: str, below: str) -> pd.DataFrame:
    """A table of the rows, their `judged` ratio replaced by the columns of `judgement`.

    Of `with_rejected` stay `ratio_with_rejected`, `verdict_with_rejected` and `fragile`: whether that verdict differs.
    """
    ratios: list[Ratio] = [row.pop("judged") for row in rows]
    every: list[Ratio] = [row.pop("with_rejected") for row in rows]
    described = [judgement(*found, above, below) for found in zip(ratios, judge(ratios, margin), strict=True)]
    others = [judgement(*found, above, below) for found in zip(every, judge(every, margin), strict=True)]
    return pd.DataFrame([
        {
            **row, **own, "ratio_with_rejected": other["ratio"], "verdict_with_rejected": other["verdict"],
            "fragile": bool(row["rejected"]) and own["verdict"] != other["verdict"],
        }
        for row, own, other in zip(rows, described, others, strict=True)
    ])  # fmt: skip


def judgement(ratio: Ratio, verdict: Verdict, above: str, below: str) -> dict[str, object]:
    """The columns of a judged ratio: ratio with its interval, n pairs, p_value and verdict."""
    value, low, high = ratio.interval
    word = {"above": above, "below": below}.get(verdict.word, verdict.word)
    return {
        "ratio": value, "ratio_low": low, "ratio_high": high, "n": ratio.n, "p_value": verdict.p, "verdict": word,
    }  # fmt: skip


def precision_effects(runs: pd.DataFrame, margin: float = MARGIN) -> pd.DataFrame:
    """Every cell in another precision than fp32 against the otherwise equal cell in fp32; ratio of tokens_per_s."""
    runs = judged(runs)
    rejections, cells = Rejections(runs), finished(runs, with_rejected=True)
    config = cells.to_dict("index")
    rows: list[dict[Any, Any]] = []
    for _, twins in same(cells, [field for field in CONFIG_FIELDS if field != "precision"]):
        for one in twins.index[twins["precision"] == "fp32"]:
            for other in twins.index[twins["precision"] != "fp32"]:
                ratio, more = rejections.compare(str(other), str(one))
                rows.append({**config[other], **more, "judged": ratio})
    table = _with_verdicts(rows, margin, above="faster", below="slower")
    order = ["precision", "batch_size", "strategy", "num_servers", "num_workers"]
    return table.sort_values(order, key=order_of, kind="stable", ignore_index=True) if rows else table
