"""`psring compare`: two folders or two strategies, cell by cell, with a verdict that a CI job can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import records
from bench.config import BadInput
from bench.report.cells import CONFIG_FIELDS, SORTED_BY, judged, order_of, throughputs
from bench.report.duels import WORK, finished, judgement, same
from bench.report.tables import Columns, cell_names, interval, number, table
from bench.report.verdicts import MARGIN, MIN_PAIRS, NO_VERDICT, Ratio, judge, paired, unpaired
from strategies import catalogue

COLUMNS: Columns = {
    "n": lambda row: str(row["n"]),
    "tokens/s A": lambda row: number(row["tokens_per_s_a"]),
    "tokens/s B": lambda row: number(row["tokens_per_s_b"]),
    "B ÷ A": lambda row: interval(row, "ratio"),
    "B is": lambda row: str(row["verdict"]),
}


def compare(a: str, b: str, within: Path | None, margin: float = MARGIN) -> pd.DataFrame:
    """One row per cell of two folders or, within one, per pair of cells of two strategies; `ratio` is B ÷ A.

    The verdict says what B is, with the words and the rules of a report (`verdicts`). BadInput if a strategy is
    unknown or no cell has numbers on both sides.
    """
    if within is None:
        frames = [records.frame(records.read(Path(folder))) for folder in (a, b)]
        found = match_folders(*frames, margin=margin) if all(len(frame) for frame in frames) else pd.DataFrame()
    else:
        try:
            arms = [catalogue.full_name(name) for name in (a, b)]
        except ValueError as error:
            raise BadInput(f"compare: {error}") from None
        found = match_strategies(records.frame(records.read(within)), *arms, margin=margin)
    if found.empty or not found[["tokens_per_s_a", "tokens_per_s_b"]].notna().all(axis=1).any():
        raise BadInput(f"compare: {a} and {b} have no cell with numbers in common; sweep both with the same file")
    return found


def match_folders(a: pd.DataFrame, b: pd.DataFrame, *, margin: float = MARGIN) -> pd.DataFrame:
    """A row per cell of either folder. Launches of two folders are not paired: the interval is Welch's."""
    sides = [judged(runs) for runs in (a, b)]
    rows_of = [{_identity(row): row for row in runs.to_dict("records")} for runs in sides]
    samples = [throughputs(runs) for runs in sides]
    rows = []
    for key in dict.fromkeys([*rows_of[0], *rows_of[1]]):
        found = [side[key] for side in rows_of if key in side]
        both = zip(samples, rows_of, strict=True)
        rates = [of.get(side[key]["cell"], {}) if key in side else {} for of, side in both]
        ratio = unpaired(rates[1].values(), rates[0].values())
        hosts = list(dict.fromkeys(str(config["environment"]) for config in found))
        apart = {"environments": " and ".join(hosts) if len(hosts) > 1 else ""}
        row: dict[Any, Any] = {**found[0], **apart}
        rows.append({**row, **_side_by_side(rates[0], rates[1]), "judged": ratio})
    return _with_verdicts(rows, margin)


def match_strategies(runs: pd.DataFrame, a: str, b: str, *, margin: float = MARGIN) -> pd.DataFrame:
    """A row per pair of cells of two strategies with equal work and workers; launches are paired by repeat."""
    runs = judged(runs)
    samples = throughputs(runs)
    rows = []
    for _, arms in same(finished(runs), [*WORK, "place", "num_workers"]):
        for one in arms.index[arms["strategy"] == a]:
            for other in arms.index[arms["strategy"] == b]:
                ratio = paired(samples[str(other)], samples[str(one)])
                found = _side_by_side(samples[str(one)], samples[str(other)])
                named = max(one, other, key=arms["num_servers"].to_dict().__getitem__)
                rows.append({**arms.loc[named].to_dict(), "environments": "", **found, "judged": ratio})
    return _with_verdicts(rows, margin)


def _identity(config: dict[Any, Any]) -> tuple[Any, ...]:
    return tuple(None if pd.isna(config[field]) else config[field] for field in CONFIG_FIELDS)


def _side_by_side(a: dict[int, float], b: dict[int, float]) -> dict[str, object]:
    medians = [float(np.median(list(rates.values()))) if rates else np.nan for rates in (a, b)]
    missing = " and ".join(side for side, rates in (("A", a), ("B", b)) if not rates)
    return {"tokens_per_s_a": medians[0], "tokens_per_s_b": medians[1], "missing": missing}


def _with_verdicts(rows: list[dict[Any, Any]], margin: float) -> pd.DataFrame:
    """The rows with their verdicts, in the order of a report."""
    if not rows:
        return pd.DataFrame()
    ratios: list[Ratio] = [row.pop("judged") for row in rows]
    for row, ratio, verdict in zip(rows, ratios, judge(ratios, margin), strict=True):
        row |= judgement(ratio, verdict, "faster", "slower")
        missing = row.pop("missing")
        if missing:
            row["verdict"] = f"no numbers in {missing}"
        elif row["verdict"] == NO_VERDICT:
            row["verdict"] = f"{NO_VERDICT}, fewer than {MIN_PAIRS} launches"
    return pd.DataFrame(rows).sort_values(list(SORTED_BY), key=order_of, kind="stable", ignore_index=True)


def as_text(found: pd.DataFrame, a: str, b: str) -> str:
    """The comparison as an aligned table, followed by the environments if they differ."""
    shown = table(
        found.to_dict("records"), f"A: {a}   B: {b}   (tokens/s, intervals in brackets)", COLUMNS, cell_names(found)
    )
    lines = [shown.caption, pd.DataFrame(shown.rows, columns=shown.head).to_string(index=False)]
    if found["environments"].ne("").any():
        lines.append(f"Not the same environment: {', '.join(sorted(set(found['environments']) - {''}))}.")
    return "\n".join(lines)


def slower_than(found: pd.DataFrame, share: float) -> pd.DataFrame:
    """Rows where the whole interval of B ÷ A lies below 1 − share, or where A has numbers and B has none."""
    lost = found["tokens_per_s_a"].notna() & found["tokens_per_s_b"].isna()
    return found[lost | (found["ratio_high"] < 1 - share)]
