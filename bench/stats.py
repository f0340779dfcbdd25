"""From runs to cells: medians, bootstrap intervals, speedup and scaling efficiency.

Pure functions of the frame that `records.frame` gives. Steps within one launch depend on each other, so the
*launch* is the sample: every number here is a median over the ok launches of a cell, its interval the 95 %
percentile bootstrap of that median with a fixed seed. Blank (NaN) means unknown, never zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.config import BadInput, GPTShape, RunConfig
from bench.records import Ledger, Summary

Key = tuple[Any, ...]
Samples = npt.NDArray[np.float64]

RESAMPLES = 4999
FEW_LAUNCHES = 5
SEED = 20_02_1971

# Knobs that change neither the arithmetic nor the messages of a step. `model` is here because the five
# dimensions beside it say the same, overrides included.
HARNESS = frozenset({
    "model", "steps", "warmup_steps", "eval_batches", "check_equivalence", "timeout_s", "hostfile",
    "peak_flops_per_s", "target", "tuned",
})  # fmt: skip
# Knobs a lone process does not have: a `local` baseline may differ in them.
COMMUNICATION = frozenset({
    "strategy", "num_workers", "num_servers", "consistency", "staleness", "launcher", "network_interface", "wire_dtype",
    "placement", "chunk_bytes", "schedule", "window_bytes", "segment_bytes", "fusion_threshold_bytes", "cycle_time_s",
    "bucket_bytes",
})  # fmt: skip
# What makes workers unlike each other: a `local` baseline is the even worker, and may differ in them.
UNEVENNESS = frozenset({"speed_factor", "compute_cv"})

CONFIG_FIELDS = tuple(RunConfig.model_fields)
IDENTITY = (
    "strategy", "consistency", "num_workers", "num_servers", "placement", "model", "precision", "wire_dtype",
    "batch_size", "compute", "launcher",
)  # fmt: skip
SORTED_BY = ("precision", "batch_size", "strategy", "num_servers", "wire_dtype", "num_workers")
WORK = tuple(field for field in CONFIG_FIELDS if field not in HARNESS | COMMUNICATION | UNEVENNESS)
# One worker may have come without a launcher.
STACK = tuple(f for f in CONFIG_FIELDS if f not in HARNESS | {"num_workers", "launcher", "network_interface"})
TOPOLOGY = COMMUNICATION - {"wire_dtype"}  # what two topologies may differ in and still be compared

NOT_AVERAGED = ("allreduce_algorithm", "ledger_agrees", "staleness_histogram")
WORST = ("equivalence_error", "largest_lead")
WHOLE = ("num_nodes", "num_parameters")
MEASURED = tuple(f for f in (*Summary.model_fields, *Ledger.model_fields) if f not in NOT_AVERAGED)


class Estimate(NamedTuple):
    """A value and its 95 % interval; NaN where unknown."""

    value: float
    low: float
    high: float


BLANK = Estimate(np.nan, np.nan, np.nan)


def median_interval(values: Iterable[float]) -> Estimate:
    """The median of launches and its interval, blank for fewer than two launches."""
    samples = _sorted(values)
    if samples.size == 0:
        return BLANK
    low, high = _percentiles(_resampled_medians(samples, arm=0)) if samples.size > 1 else (np.nan, np.nan)
    return Estimate(float(np.median(samples)), low, high)


def ratio_interval(numerator: Iterable[float], denominator: Iterable[float]) -> Estimate:
    """The ratio of two medians; both arms are resampled, each on its own. Blank with an empty arm."""
    top, bottom = _sorted(numerator), _sorted(denominator)
    if top.size == 0 or bottom.size == 0 or np.median(bottom) == 0:
        return BLANK
    value = float(np.median(top) / np.median(bottom))
    if min(top.size, bottom.size) == 1:
        return Estimate(value, np.nan, np.nan)
    return Estimate(value, *_percentiles(_resampled_medians(top, arm=0) / _resampled_medians(bottom, arm=1)))


def _sorted(values: Iterable[float]) -> Samples:
    """Sort, so that the order in which launches were written cannot move an interval."""
    return np.sort(np.asarray(list(values), dtype=np.float64))


def _resampled_medians(samples: Samples, arm: int) -> Samples:
    """Medians of RESAMPLES draws with replacement; two arms never share their draws."""
    draws = np.random.default_rng([SEED, arm]).integers(samples.size, size=(RESAMPLES, samples.size))
    return np.asarray(np.median(samples[draws], axis=1), dtype=np.float64)


def _percentiles(values: Samples) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def summarize(runs: pd.DataFrame, *, allow_mixed: bool = False) -> pd.DataFrame:
    """One row per cell, in an order that the order of the runs does not change.

    BadInput when the ok runs come from different environments, unless allow_mixed; the column
    `environment` then says which row comes from where.
    """
    if runs.empty:
        raise BadInput("runs.jsonl: no run in it yet; run `psring sweep` first")
    runs = judged(runs)
    if not allow_mixed:
        _refuse_mixture(runs)
    baselines = _baselines(runs)
    samples = throughputs(runs)
    extra = [field for field in varying(runs) if field not in IDENTITY]
    rows = [
        {
            **_identity(launches, extra),
            **_measured(launches),
            **_scaling(launches.iloc[0], *baselines.get(str(cell), ("", "")), samples),
            **_outcome(launches),
        }
        for cell, launches in runs.groupby("cell")
    ]
    table = pd.DataFrame(rows).astype(dict.fromkeys(WHOLE, "Int64"))
    order = [*(name for name in GPTShape.model_fields if name in extra), *SORTED_BY, "cell"]
    return table.sort_values(order, key=_rank, ignore_index=True)


def judged(runs: pd.DataFrame) -> pd.DataFrame:
    """Take a cell's other runs out with one that failed the equivalence gate.

    The gate stands in a cell's first run only; the others trained the same wrong thing unchecked.
    """
    failed = (runs["status"] == "invalid") | (runs["equivalence_error"] > runs["equivalence_bound"])
    caught = runs.loc[failed, ["cell", "reason"]]
    reasons = caught.drop_duplicates("cell").set_index("cell")["reason"]
    leaked = runs["cell"].isin(reasons.index) & (runs["status"] == "ok")
    runs = runs.copy()
    runs.loc[leaked, "reason"] = runs.loc[leaked, "cell"].map(reasons)
    runs.loc[leaked, "status"] = "invalid"
    return runs


def _rank(column: pd.Series) -> pd.Series:
    """Sort words in the order RunConfig lists them: local first, fp32 before bf16."""
    field = RunConfig.model_fields.get(str(column.name))
    words = get_args(field.annotation) if field else ()
    return column.map({word: place for place, word in enumerate(words)}) if words else column


def _refuse_mixture(runs: pd.DataFrame) -> None:
    """Numbers of different hosts, versions or commits are not one table without saying so."""
    digests = sorted(runs.loc[runs["status"] == "ok", "environment"].unique())
    if len(digests) > 1:
        raise BadInput(
            f"runs.jsonl: its runs come from {len(digests)} environments ({', '.join(digests)}): sweep again "
            "into a new folder, or pass --allow-mixed to have them side by side, each row naming its own"
        )


def _finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The config of every cell that has an ok launch, indexed by cell."""
    return runs[runs["status"] == "ok"].drop_duplicates("cell").set_index("cell").sort_index()


def throughputs(runs: pd.DataFrame) -> dict[str, list[float]]:
    """tokens_per_s of the ok launches of every cell."""
    ok = runs[runs["status"] == "ok"]
    return {str(cell): [float(x) for x in values] for cell, values in ok.groupby("cell")["tokens_per_s"]}


def varying(table: pd.DataFrame) -> list[str]:
    """Config columns with more than one value, in the order RunConfig declares them; a blank is a value."""
    return [field for field in CONFIG_FIELDS if field in table and table[field].nunique(dropna=False) > 1]


def _identity(launches: pd.DataFrame, extra: list[str]) -> dict[str, object]:
    config = launches.iloc[0]
    return {
        "cell": config["cell"],
        **{field: config[field] for field in IDENTITY},
        "world_size": config["num_workers"] + config["num_servers"],
        **{field: config[field] for field in extra},
    }


def _measured(launches: pd.DataFrame) -> dict[Any, object]:
    """Medians over the ok launches; the worst of what is held to a bound, for a gate that leaks once leaks."""
    ok = launches[launches["status"] == "ok"]
    numbers = ok[list(MEASURED)].astype("float64")
    medians: dict[Any, object] = numbers.median().to_dict()
    for name in WORST:
        medians[name] = numbers[name].max()
    for name in WHOLE:
        medians[name] = numbers[name].max()
    speed = median_interval(ok["tokens_per_s"])
    agreements = ok["ledger_agrees"].dropna()
    return {
        "n": len(ok),
        "tokens_per_s": speed.value, "tokens_per_s_low": speed.low, "tokens_per_s_high": speed.high,
        **medians,
        "ledger_agrees": bool(agreements.all()) if len(agreements) else None,
        "allreduce_algorithm": " ".join(sorted(ok["allreduce_algorithm"].dropna().unique())),
    }  # fmt: skip


def _scaling(config: pd.Series, baseline: str, name: str, samples: dict[str, list[float]]) -> dict[str, object]:
    """Speedup and efficiency of a cell against its baseline, blank without one.

    Weak scaling: batch_size is per worker, so n workers have n times the work and ideally n times the rate.
    """
    cell = str(config["cell"])
    speedup = ratio_interval(samples.get(cell, []), samples.get(baseline, []))
    if cell == baseline:
        speedup = Estimate(1.0, np.nan, np.nan)  # by definition: there is no chance in it
    ranks = int(config["num_workers"] + config["num_servers"])
    ideals = {"speedup": 1, "scaling_efficiency": config["num_workers"], "scaling_efficiency_per_rank": ranks}
    row: dict[str, object] = {}
    for column, ideal in ideals.items():
        shares = [bound / ideal for bound in speedup]
        row |= dict(zip((column, f"{column}_low", f"{column}_high"), shares, strict=True))
    return {**row, "baseline": name}


def _baselines(runs: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Per cell, the cell to scale from and its name: `local` on the same work, else one worker of its stack."""
    local, alone = defaultdict[Key, list[str]](list), defaultdict[Key, list[str]](list)
    finished = _configs(runs[runs["status"] == "ok"])
    for cell, config in finished.items():
        if config["strategy"] == "local":
            local[_key(config, WORK)].append(cell)
        if config["num_workers"] == 1:
            alone[_key(config, STACK)].append(cell)
    baselines = {}
    for cell, config in _configs(runs).items():
        name = f"1 worker of {config['strategy']}"
        for found, called in ((local[_key(config, WORK)], "local"), (alone[_key(config, STACK)], name)):
            if found:
                own = _key(config, CONFIG_FIELDS)
                likeness = {other: _likeness(own, _key(finished[other], CONFIG_FIELDS)) for other in found}
                baselines[cell] = (max(found, key=lambda other: likeness[other]), called)
                break
    return baselines


def _configs(runs: pd.DataFrame) -> dict[str, dict[Any, Any]]:
    """The config of every cell, in the order of their digests."""
    cells = runs.drop_duplicates("cell").set_index("cell").sort_index()
    return {str(cell): config for cell, config in cells[list(CONFIG_FIELDS)].to_dict("index").items()}


def _key(config: Mapping[Any, Any], fields: Iterable[str]) -> Key:
    """The values of some fields, comparable: every blank is None."""
    return tuple(None if pd.isna(config[field]) else config[field] for field in fields)


def _likeness(one: Key, other: Key) -> int:
    """In how many fields two configs agree, so that a cell is likest to itself."""
    return sum(a == b for a, b in zip(one, other, strict=True))


def _outcome(launches: pd.DataFrame) -> dict[str, object]:
    """Status, reason and labels of a cell; one ok launch makes it ok, the reason counts the others."""
    bad = launches[launches["status"] != "ok"]
    n = len(launches) - len(bad)
    labels = {label for text in launches["labels"] for label in text.split()}
    if 0 < n < FEW_LAUNCHES:
        labels.add("few_launches")
    problems = sorted({f"{row['status']}: {row['reason']}" for _, row in bad.iterrows()})
    lost = f"{len(bad)} of {len(launches)} launches failed: " if n and len(bad) else ""
    reasons = problems if n else sorted(set(bad["reason"]))
    return {
        "status": "ok" if n else sorted(bad["status"].mode())[0],
        "labels": " ".join(sorted(labels)),
        "reason": lost + "; ".join(reasons),
        "environment": " ".join(sorted(set(launches["environment"]))),
    }


def compare_topologies(runs: pd.DataFrame) -> pd.DataFrame:
    """Ring against parameter server on equal work, at equal workers and at equal ranks.

    One row per work (precision, batch_size, wire_dtype, …) and kind of equality, at the largest size that
    both ran; of several cells of one topology the fastest. `ratio` is ring ÷ server in tokens_per_s.
    """
    runs = judged(runs)
    finished, samples = _finished(runs), throughputs(runs)
    finished["world_size"] = finished["num_workers"] + finished["num_servers"]
    finished["tokens_per_s"] = [float(np.median(samples[str(cell)])) for cell in finished.index]
    work = [field for field in CONFIG_FIELDS if field not in HARNESS | TOPOLOGY]
    rows: list[dict[str, object]] = []
    for _, arms in finished.groupby(work, dropna=False):
        ring, server = (arms[arms["strategy"] == name] for name in ("ring_allreduce", "parameter_server"))
        for equal, column in (("workers", "num_workers"), ("ranks", "world_size")):
            sizes = set(ring[column]) & set(server[column])
            if sizes:
                size = max(sizes)
                pair = [str(arm[arm[column] == size]["tokens_per_s"].idxmax()) for arm in (ring, server)]
                rows.append({"equal": equal, "size": size, **_duel(finished.loc[pair], samples)})
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    return table.sort_values(["precision", "batch_size"], key=_rank, kind="stable", ignore_index=True)


def _duel(pair: pd.DataFrame, samples: dict[str, list[float]]) -> dict[str, object]:
    """One row of compare_topologies: a winner only where the interval leaves 1 out."""
    ring, server = (str(cell) for cell in pair.index)
    ratio = ratio_interval(samples[ring], samples[server])
    verdict = "unknown" if np.isnan(ratio.low) else "tie"
    if ratio.low > 1:
        verdict = "ring_allreduce"
    elif ratio.high < 1:
        verdict = "parameter_server"
    config = pair.loc[server]
    return {
        **{field: config[field] for field in CONFIG_FIELDS if field not in HARNESS | TOPOLOGY},
        "ring": ring, "server": server, "num_servers": config["num_servers"],
        "ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high,
        "n": min(len(samples[ring]), len(samples[server])), "verdict": verdict,
    }  # fmt: skip
