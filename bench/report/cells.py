"""From runs to one row per cell: medians with intervals, speedup and efficiency of weak and strong scaling.

Pure functions of the table that `records.frame` returns. Steps within one launch are correlated, so the *launch* is
the sample: a number is the median over the ok launches of a cell, its interval comes from `intervals`. A column has
the name of the run's column that it is the median of. Blank (NaN) means unknown, never zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import geometric_mean
from typing import Any, get_args

import numpy as np
import pandas as pd

from bench import ledger
from bench.config import MIN_CONVERGENCE, BadInput, RunConfig
from bench.intervals import Estimate, confidence, median_interval
from bench.report.verdicts import ratio_of
from bench.shape import GPTShape
from bench.summary import Summary
from strategies import catalogue

Key = tuple[Any, ...]
Config = dict[Any, Any]

FEW_LAUNCHES = 5

# Knobs that change neither the arithmetic nor the messages of a step. `model` is among them because the five
# dimensions describe the model, overrides included.
HARNESS = frozenset({
    "model", "steps", "warmup_steps", "eval_batches", "check_equivalence", "allow_nonfinite_loss", "timeout_s",
    "hostfile", "patience_s", "max_foreign_cpu_share", "peak_flops_per_s", "target", "tuned",
})  # fmt: skip
LINKS = ("link", "delay", "congestion_control")
# Knobs that save bytes and change the trained model.
LOSSY = ("compression", "topk_ratio", "sync_every", "outer_learning_rate", "outer_momentum")
# Knobs without effect on one process: a `local` baseline may differ in them.
COMMUNICATION = frozenset({
    "strategy", "num_workers", "num_servers", "placement", "sharding", "consistency", "staleness", "server_role",
    "launcher", "network_interface", "wire_dtype", "chunk_bytes", "schedule", "window_bytes", "socket_bytes",
    "eager_limit_bytes", "shared_memory", "poll_s", "segment_bytes", "fusion_threshold_bytes", "cycle_time_s",
    "bucket_bytes", "reshard_after_forward", "model_parallel_size", "num_micro_batches", "pipeline_schedule",
    "sequence_parallel", "between_copies", *LINKS, *LOSSY,
})  # fmt: skip
# Knobs that make workers differ: a `local` baseline is a worker of speed 1 and may differ in them.
UNEVENNESS = frozenset({"speed_factor", "compute_cv"})

CONFIG_FIELDS = tuple(RunConfig.model_fields)
IDENTITY = (
    "strategy", "consistency", "num_workers", "num_servers", "placement", "model", "precision", "wire_dtype",
    "batch_size", "compute", "launcher", "model_parallel_size",
)  # fmt: skip
SORTED_BY = ("precision", "batch_size", "strategy", "num_servers", "wire_dtype", "num_workers")
WORK = tuple(field for field in CONFIG_FIELDS if field not in HARNESS | COMMUNICATION | UNEVENNESS)
# A single worker may have been started without a launcher.
STACK = tuple(f for f in CONFIG_FIELDS if f not in HARNESS | {"num_workers", "launcher", "network_interface"})
# The batch size that a baseline shares with its cell, by prefix of the columns: weak scaling, strong scaling.
SCALINGS = {"": "batch_per_worker", "strong_": "global_batch_size"}
TOPOLOGY = COMMUNICATION - {"wire_dtype", *LINKS, *LOSSY}  # compared topologies may differ in these

# Where messages went, the most realistic place first. No line or ratio joins cells of different places.
PLACES = ("network", "emulated nodes", "one machine")

COUNTED = ("rejected", "attempt", "disturbance")  # per launch, for what a cell says about rejected ones

# Words of a cell's launches: each different one once, with what separates them.
WORDS = {
    "allreduce_algorithm": " ",
    "not_ring_bytes": "; ",
    "bytes_counted_by": " ",
    "wire_counted_by": " ",
    "wire_remark": "; ",
}
NOT_AVERAGED = (*WORDS, "gate_passed", "ledger_agrees", "rank_start", "staleness_histogram", "identified_bytes")
WORST = ("equivalence_error", "largest_lead")
WHOLE = ("num_nodes", "num_parameters")
MEASURED = tuple(f for f in (*Summary.model_fields, *ledger.COLUMNS) if f not in NOT_AVERAGED)


def summarize(runs: pd.DataFrame, *, allow_mixed: bool = False) -> pd.DataFrame:
    """One row per cell, in an order that does not depend on the order of the runs.

    BadInput without runs, or if the ok runs come from different environments and allow_mixed is False; the column
    `environment` names those of each row.
    """
    if runs.empty:
        raise BadInput("runs.jsonl: no run in it yet; run `psring sweep` first")
    runs = judged(runs)
    if not allow_mixed:
        _refuse_mixture(runs)
    configs, samples = _configs(runs), throughputs(runs)
    finished = {cell: config for cell, config in configs.items() if cell in samples}
    baselines = {prefix: _baselines(configs, finished, batch) for prefix, batch in SCALINGS.items()}
    extra = [field for field in varying(runs) if field not in IDENTITY]
    launches = defaultdict[str, list[dict[Any, Any]]](list)
    for run in runs[["cell", "status", "reason", "labels", "environment", *COUNTED]].to_dict("records"):
        launches[run["cell"]].append(run)
    measured = _measured(runs)
    every = throughputs(runs, with_rejected=True)
    rows = [
        {
            "cell": cell,
            **_identity(config, extra),
            **_speed(samples.get(cell, {})),
            **measured.get(cell, {}),
            **_scaling(cell, config, baselines, samples),
            **_outcome(launches[cell]),
            **_rejections(launches[cell], every.get(cell, {})),
        }
        for cell, config in configs.items()
    ]
    # One block (copy): adding columns to many is slow.
    table = pd.DataFrame(rows).astype(dict.fromkeys(WHOLE, "Int64")).copy()
    planned = [PLACES[1] if configs[cell]["link"] else "" for cell in table["cell"]]  # for cells without an ok run
    table["place"] = place_of(table).where(table["n"] > 0, planned)
    order = [*(name for name in GPTShape.model_fields if name in extra), *SORTED_BY, "cell"]
    return table.sort_values(order, key=order_of, ignore_index=True)


def judged(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, with every run of a cell made invalid if one run of it failed the equivalence gate.

    Only one run of a cell is checked by the gate; the others ran the same arithmetic. A run that the guard rejected
    does not affect the other runs.
    """
    caught = runs.loc[_failed_gate(runs), ["cell", "reason"]]
    reasons = caught.drop_duplicates("cell").set_index("cell")["reason"]
    leaked = runs["cell"].isin(reasons.index) & ((runs["status"] == "ok") | runs["rejected"])
    runs = runs.copy()
    runs.loc[leaked, "rejected"] = False
    runs.loc[leaked, "reason"] = runs.loc[leaked, "cell"].map(reasons)
    runs.loc[leaked, "status"] = "invalid"
    return runs


def with_disturbed(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, those counted as ok that the guard rejected in a cell without an ok run: all that is known of it."""
    runs = judged(runs)
    accepted = runs.loc[runs["status"] == "ok", "cell"]
    counted = runs["rejected"].astype(bool) & ~runs["cell"].isin(accepted)
    return runs.assign(status=runs["status"].where(~counted, "ok"))


def _failed_gate(runs: pd.DataFrame) -> pd.Series[bool]:
    """Whether the gate judged each run and failed it.

    Results without the column `gate_passed` say so by their numbers, and by the reason where workers' models differed.
    """
    by_numbers = (runs["equivalence_error"] > runs["equivalence_bound"]) | (runs["convergence"] < MIN_CONVERGENCE)
    judged_by_words = runs["equivalence_error"].notna() | runs["convergence"].notna()
    by_words = judged_by_words & runs["reason"].str.contains("different models")
    return runs["gate_passed"].eq(False) | (runs["gate_passed"].isna() & (by_numbers | by_words))


def is_kind(rows: pd.DataFrame, fact: str) -> pd.Series[bool]:
    """Whether what the catalogue knows of a strategy (`communicates`, `has_servers`) holds in each row."""
    return rows["strategy"].map(lambda name: getattr(catalogue.find(name), fact)).astype(bool)


def order_of(column: pd.Series) -> pd.Series:
    """Sort key of a column: choices in the order RunConfig lists them (fp32 before bf16), else the values."""
    if column.name == "strategy":
        return column.map(lambda name: (catalogue.order(name), name))
    field = RunConfig.model_fields.get(str(column.name))
    words = get_args(field.annotation) if field else ()
    return column.map({word: position for position, word in enumerate(words)}) if words else column


def _refuse_mixture(runs: pd.DataFrame) -> None:
    """BadInput if the ok runs come from several environments (hosts, versions, commits)."""
    digests = sorted(runs.loc[runs["status"] == "ok", "environment"].unique())
    if len(digests) > 1:
        raise BadInput(
            f"runs.jsonl: its runs come from {len(digests)} environments ({', '.join(digests)}); sweep again "
            "into a new folder, or pass --allow-mixed to join them, each row with its environment"
        )


def measured_runs(runs: pd.DataFrame, with_rejected: bool) -> pd.DataFrame:
    """The runs whose speed counts: the ok ones, and if asked those that the guard rejected."""
    return runs[(runs["status"] == "ok") | (runs["rejected"] & with_rejected)]


def throughputs(runs: pd.DataFrame, with_rejected: bool = False) -> dict[str, dict[int, float]]:
    """tokens_per_s of the ok launches: by cell, then by repeat.

    With rejected launches, a repeat that has several has their geometric mean: the replaced one counts, too.
    """
    found = measured_runs(runs, with_rejected)
    launches: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell, repeat, rate in zip(found["cell"], found["repeat"], found["tokens_per_s"], strict=True):
        launches[str(cell)][int(repeat)].append(float(rate))
    return {
        cell: {repeat: geometric_mean(rates) if len(rates) > 1 else rates[0] for repeat, rates in repeats.items()}
        for cell, repeats in launches.items()
    }


def place_of(table: pd.DataFrame) -> pd.Series:
    """One of PLACES per row (run or cell): where its messages went. A single process is on one machine."""
    emulated = table["labels"].str.split().map(lambda labels: "emulated" in labels).astype(bool)
    several = table["num_nodes"].astype("float64") > 1
    words = np.where(emulated, PLACES[1], np.where(several, PLACES[0], PLACES[2]))
    return pd.Series(words, index=table.index)


def varying(table: pd.DataFrame) -> list[str]:
    """Config columns with more than one value (a blank counts as one), in the order of RunConfig."""
    return [field for field in CONFIG_FIELDS if field in table and table[field].nunique(dropna=False) > 1]


def _identity(config: Config, extra: list[str]) -> dict[str, object]:
    return {
        **{field: config[field] for field in IDENTITY},
        "world_size": config["num_workers"] + config["num_servers"],
        **{field: config[field] for field in extra},
    }


def _speed(rates: dict[int, float]) -> dict[str, object]:
    """n, tokens_per_s with its interval, and the coverage of that interval, from the rates of ok launches."""
    speed = median_interval(rates.values())
    return {
        "n": len(rates), "confidence": confidence(len(rates)),
        "tokens_per_s": speed.value, "tokens_per_s_low": speed.low, "tokens_per_s_high": speed.high,
    }  # fmt: skip


def _measured(runs: pd.DataFrame) -> dict[str, dict[Any, Any]]:
    """Per cell the median of every column over the ok launches; the maximum of the columns WORST and WHOLE."""
    ok = runs[runs["status"] == "ok"]
    numbers = ok[list(MEASURED)].astype("float64").groupby(ok["cell"])
    table = numbers.median()
    worst = [*WORST, *WHOLE]
    table[worst] = numbers[worst].max()
    every = table.reindex(sorted(set(runs["cell"]))).to_dict("index")
    agreements = defaultdict[str, set[bool]](set)
    for cell, agrees in zip(ok["cell"], ok["ledger_agrees"], strict=True):
        agreements[cell] |= {bool(agrees)} if pd.notna(agrees) else set()
    words = {name: _words(ok["cell"], ok[name]) for name in WORDS}
    return {
        str(cell): {
            **found,
            "ledger_agrees": all(agreements[str(cell)]) if agreements[str(cell)] else None,
            **{name: separator.join(sorted(words[name][str(cell)])) for name, separator in WORDS.items()},
        }
        for cell, found in every.items()
    }


def _words(cells: Iterable[str], values: Iterable[Any]) -> defaultdict[str, set[str]]:
    """The different values of each cell, blanks left out."""
    found = defaultdict[str, set[str]](set)
    for cell, value in zip(cells, values, strict=True):
        found[cell] |= {str(value)} if pd.notna(value) else set()
    return found


def _scaling(
    cell: str, config: Config, baselines: dict[str, dict[str, tuple[str, str]]], samples: dict[str, dict[int, float]]
) -> dict[str, object]:
    """Speedup and efficiency of a cell relative to its weak and its strong baseline; NaN without one.

    The ideal of n workers is n times the baseline's rate: n times the work in the same time (weak scaling), or the
    same work in 1/n of the time (strong scaling). Launches are paired by repeat.
    """
    ranks = int(config["num_workers"] + config["num_servers"])
    ideals = {"speedup": 1, "scaling_efficiency": config["num_workers"], "scaling_efficiency_per_node": ranks}
    row: dict[str, object] = {}
    for prefix, found in baselines.items():
        baseline, name = found.get(cell, ("", ""))
        speedup = ratio_of(samples.get(cell, {}), samples.get(baseline, {})).interval
        if cell == baseline:
            speedup = Estimate(1.0, np.nan, np.nan)  # exact by definition
        for column, ideal in ideals.items():
            names = (f"{prefix}{column}", f"{prefix}{column}_low", f"{prefix}{column}_high")
            row |= dict(zip(names, [bound / ideal for bound in speedup], strict=True))
        row[f"{prefix}baseline"] = name
    return row


def _baselines(configs: dict[str, Config], finished: dict[str, Config], batch: str) -> dict[str, tuple[str, str]]:
    """Per cell its baseline and the baseline's name: `local` with equal work, else one worker of the same stack.

    `batch` is what must be equal of the batch: batch_per_worker or global_batch_size. Of several the most similar one.
    """
    work, stack = ((*(field for field in same if field != "batch_size"), batch) for same in (WORK, STACK))
    local, alone = defaultdict[Key, list[str]](list), defaultdict[Key, list[str]](list)
    for cell, config in finished.items():
        if catalogue.find(str(config["strategy"])).single_process:
            local[_key(config, work)].append(cell)
        if config["num_workers"] == 1:
            alone[_key(config, stack)].append(cell)
    baselines = {}
    for cell, config in configs.items():
        name = f"1 worker of {config['strategy']}"
        for found, called in ((local[_key(config, work)], catalogue.LOCAL.name), (alone[_key(config, stack)], name)):
            if found:
                own = _key(config, CONFIG_FIELDS)
                similarity = {other: _similarity(own, _key(finished[other], CONFIG_FIELDS)) for other in found}
                baselines[cell] = (max(found, key=lambda other: similarity[other]), called)
                break
    return baselines


def _configs(runs: pd.DataFrame) -> dict[str, Config]:
    """Per cell its config, sorted by digest; a blank is None, because NaN is not equal to itself."""
    first = runs.drop_duplicates("cell").set_index("cell").sort_index()
    first["global_batch_size"] = num_replicas(first) * first["batch_size"]
    first["batch_per_worker"] = batch_per_worker(first)
    fields = [*CONFIG_FIELDS, *SCALINGS.values()]
    return {
        str(cell): {field: None if pd.isna(value) else value for field, value in config.items()}
        for cell, config in first[fields].to_dict("index").items()
    }


def num_replicas(table: pd.DataFrame) -> pd.Series:
    """How many copies of the model each row trains, each on batch_size sequences."""
    return table["num_workers"] // table["model_parallel_size"]


def batch_per_worker(table: pd.DataFrame) -> pd.Series:
    """Sequences per step of each row over its workers: batch_size, shared by the ranks that hold one copy together."""
    share = table["batch_size"] / table["model_parallel_size"]
    return share.astype("int64") if (share % 1 == 0).all() else share


def _key(config: Config, fields: Iterable[str]) -> Key:
    return tuple(config[field] for field in fields)


def _similarity(one: Key, other: Key) -> int:
    """The number of fields in which two configs agree; a cell is most similar to itself."""
    return sum(a == b for a, b in zip(one, other, strict=True))


def _rejections(launches: list[dict[Any, Any]], rates: dict[int, float]) -> dict[str, object]:
    """How many launches of a cell were rejected and replaced, its speed with them, and the worst disturbance."""
    shares = [run["disturbance"] for run in launches if run["rejected"] and pd.notna(run["disturbance"])]
    return {
        "rejected": sum(bool(run["rejected"]) for run in launches),
        "replacements": sum(run["attempt"] > 0 for run in launches),
        "tokens_per_s_with_rejected": median_interval(rates.values()).value,
        "disturbance_of_rejected": max(shares, default=np.nan),
    }


def _outcome(launches: list[dict[Any, Any]]) -> dict[str, object]:
    """Status, reason, labels and environment of a cell: ok if any launch is; the reason counts failed launches."""
    bad = [run for run in launches if run["status"] != "ok"]
    n = len(launches) - len(bad)
    labels = {label for run in launches for label in run["labels"].split()}
    if 0 < n < FEW_LAUNCHES:
        labels.add("few_launches")
    problems = sorted({f"{run['status']}: {run['reason']}" for run in bad})
    lost = f"{len(bad)} of {len(launches)} launches failed: " if n and bad else ""
    reasons = problems if n else sorted({run["reason"] for run in bad})
    statuses = sorted(run["status"] for run in bad)
    return {
        "status": "ok" if n else max(dict.fromkeys(statuses), key=statuses.count),
        "labels": " ".join(sorted(labels)),
        "reason": lost + "; ".join(reasons),
        "environment": " ".join(sorted({run["environment"] for run in launches})),
    }
