"""The headline of a report in which no ring and servers can be compared: why, and what is fastest."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.report import cells, conclusions
from bench.report.equal_nodes import at_equal_nodes
from bench.report.looks import with_looks
from bench.report.panels import SIZE
from bench.report.sentences import capital, listed
from bench.report.tables import Row, interval
from strategies import catalogue

MAX_RANKED = 6  # arrangements in the headline; the table has all


def headline(summary: pd.DataFrame) -> str:
    """Why there is no answer, how far what did run scales, and what is fastest at equal nodes."""
    ok = summary[summary["status"] == "ok"]
    if ok.empty:
        return "No answer: no run has numbers."
    rings = ok[ok["strategy"].map(lambda name: catalogue.find(name).family == catalogue.RING)]
    servers = ok[cells.is_kind(ok, "has_servers")]
    if len(rings) and len(servers):
        if (servers["consistency"] != "bsp").all():
            return "No answer: only asynchronous servers ran, which learn less from a token than a ring."
        ran = [listed([str(n) for n in sorted(found["world_size"].unique())]) for found in (rings, servers)]
        return f"No answer: a ring (ranks: {ran[0]}) and servers ({ran[1]}) have no launch of equal work in common."
    missing = "ring" if len(servers) else "parameter server" if len(rings) else "ring and no parameter server"
    return f"No answer: no {missing} has numbers, so there is nothing to compare.{fastest(ok)}{ranked(ok)}"


def fastest(ok: pd.DataFrame) -> str:
    """' Horovod's ring on 8 workers trains 6.47× as fast as one process.': the largest speedup, or blank."""
    known = ok[(ok["num_workers"] > 1) & ok["speedup"].notna()]
    if known.empty:
        return ""
    row: Row = known.sort_values("speedup").to_dict("records")[-1]
    kind = catalogue.find(row["strategy"])
    name = capital(kind.phrase or kind.title)
    against = "one process" if row["baseline"] == catalogue.LOCAL.name else row["baseline"]
    speed = conclusions.times(row, "speedup")
    return f" {name} with {row['num_workers']} workers trains {speed} as fast as {against}."


def ranked(ok: pd.DataFrame) -> str:
    """' Fastest at 8 nodes: …, 21,150 tokens/s; … reaches 71 % of that.': of the setting with most cells, or blank."""
    rows: Sequence[Row] = (
        max(at_equal_nodes(with_looks(ok)), key=len).sort_values("tokens_per_s", ascending=False).to_dict("records")
    )
    if not rows:
        return ""
    first, others = rows[0], rows[1:MAX_RANKED]
    unit = "nodes" if all(row["num_nodes"] == row[SIZE] for row in rows) else "ranks"
    shares = [f"{row['curve']} {100 * row['tokens_per_s'] / first['tokens_per_s']:.0f} %" for row in others]
    speed = f"{first['curve']}, {interval(first, 'tokens_per_s')} tokens/s"
    return f" Fastest at {first[SIZE]} {unit}: {speed}. Of that, in medians: {'; '.join(shares)}."
