"""`psring compare`: two folders or two strategies, cell by cell, with a verdict that a CI job can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from bench import records
from bench.config import BadInput, StrategyName, nearest
from bench.intervals import Estimate, paired_interval, ratio_interval
from bench.report.cells import CONFIG_FIELDS, SORTED_BY, judged, order_of, throughputs
from bench.report.duels import WORK, finished, judgement, same
from bench.report.tables import Columns, cell_names, interval, number, table

VERDICTS = {"tie": "indistinguishable", "unknown": "a single launch, no verdict"}
COLUMNS: Columns = {
    "n": lambda row: str(row["n"]),
    "tokens/s A": lambda row: number(row["tokens_per_s_a"]),
    "tokens/s B": lambda row: number(row["tokens_per_s_b"]),
    "B ÷ A": lambda row: interval(row, "ratio"),
    "confidence": lambda row: f"{row['confidence']:.1%}" if pd.notna(row["confidence"]) else "",
    "B is": lambda row: str(row["verdict"]),
}


def compare(a: str, b: str, within: Path | None) -> pd.DataFrame:
    """One row per cell of two folders or, within one, per pair of cells of two strategies; `ratio` is B ÷ A.

    BadInput where there is nothing to compare.
    """
    if within is None:
        frames = [records.frame(records.read(Path(folder))) for folder in (a, b)]
        found = match_folders(*frames) if all(len(frame) for frame in frames) else pd.DataFrame()
    else:
        known = get_args(StrategyName)
        for name in (a, b):
            if name not in known:
                raise BadInput(f"compare: unknown strategy {name!r}{nearest(name, known)}; known: {', '.join(known)}")
        found = match_strategies(records.frame(records.read(within)), a, b)
    if found.empty or not (found["verdict"].map(lambda verdict: not verdict.startswith("no numbers"))).any():
        raise BadInput(f"compare: {a} and {b} have no cell with numbers in common; sweep both with the same file")
    return found


def match_folders(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """The same cells of two folders side by side, a row per cell of either. No pairs: both arms are resampled."""
    sides = [judged(runs) for runs in (a, b)]
    cells = [{_identity(row): row for row in runs.to_dict("records")} for runs in sides]
    samples = [throughputs(runs) for runs in sides]
    rows = []
    for key in dict.fromkeys([*cells[0], *cells[1]]):
        found = [side[key] for side in cells if key in side]
        rates = [of.get(side[key]["cell"], {}) if key in side else {} for of, side in zip(samples, cells, strict=True)]
        ratio = ratio_interval(rates[1].values(), rates[0].values())
        hosts = list(dict.fromkeys(str(config["environment"]) for config in found))
        apart = {"environments": " and ".join(hosts) if len(hosts) > 1 else ""}
        row: dict[Any, Any] = {**found[0], **apart}
        rows.append({**row, **_side_by_side(rates[0], rates[1], ratio, min(map(len, rates)))})
    return _ordered(rows)


def match_strategies(runs: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Two strategies on equal work at equal workers, every cell of one with every cell of the other, paired."""
    runs = judged(runs)
    samples, cells = throughputs(runs), finished(runs)
    rows = []
    for _, arms in same(cells, [*WORK, "place", "num_workers"]):
        for one in arms.index[arms["strategy"] == a]:
            for other in arms.index[arms["strategy"] == b]:
                ratio, pairs = paired_interval(samples[str(other)], samples[str(one)])
                found = _side_by_side(samples[str(one)], samples[str(other)], ratio, pairs)
                named = max(one, other, key=arms["num_servers"].to_dict().__getitem__)
                rows.append({**arms.loc[named].to_dict(), "environments": "", **found})
    return _ordered(rows)


def _identity(config: dict[Any, Any]) -> tuple[Any, ...]:
    return tuple(None if pd.isna(config[field]) else config[field] for field in CONFIG_FIELDS)


def _side_by_side(a: dict[int, float], b: dict[int, float], ratio: Estimate, n: int) -> dict[str, object]:
    medians = [float(np.median(list(rates.values()))) if rates else np.nan for rates in (a, b)]
    missing = [side for side, rates in (("A", a), ("B", b)) if not rates]
    row = judgement(ratio, n, "faster", "slower")
    verdict = str(row["verdict"])
    row["verdict"] = f"no numbers in {' and '.join(missing)}" if missing else VERDICTS.get(verdict, verdict)
    return {"tokens_per_s_a": medians[0], "tokens_per_s_b": medians[1], **row}


def _ordered(rows: list[dict[Any, Any]]) -> pd.DataFrame:
    found = pd.DataFrame(rows)
    return found.sort_values(list(SORTED_BY), key=order_of, kind="stable", ignore_index=True) if rows else found


def as_text(found: pd.DataFrame, a: str, b: str) -> str:
    """The comparison for people, aligned."""
    shown = table(
        found.to_dict("records"), f"A: {a}   B: {b}   (tokens/s, intervals in brackets)", COLUMNS, cell_names(found)
    )
    lines = [shown.caption, pd.DataFrame(shown.rows, columns=shown.head).to_string(index=False)]
    if found["environments"].ne("").any():
        lines.append(f"Not the same environment: {', '.join(sorted(set(found['environments']) - {''}))}.")
    return "\n".join(lines)


def slower_than(found: pd.DataFrame, share: float) -> pd.DataFrame:
    """Rows where B is surely slower by more than a share of A, or has lost the numbers that A has.

    Surely: the whole interval lies below 1 − share. A ratio of single launches has no interval and proves nothing.
    """
    lost = found["tokens_per_s_a"].notna() & found["tokens_per_s_b"].isna()
    return found[lost | (found["ratio_high"] < 1 - share)]


def share_of(text: str) -> float:
    """'5%' or '0.05' as 0.05; BadInput for anything that is no share below 1."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise BadInput(f"--fail-if-slower {text}: not a share; write 5% or 0.05")
    return share
