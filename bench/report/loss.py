"""Time, tokens and bytes until a target loss that every run of a task reached, from steps/<run_id>.csv.

Throughput alone favours strategies that learn less from a token. Warm-up steps train too and are counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from bench.files import read_regular
from bench.intervals import median_interval
from bench.report.cells import WORK, is_kind, judged, num_replicas

WINDOW = 5  # steps of the trailing mean: the loss of one batch is noisy
# Knobs that change how fast a task is learned, not the task: cells that differ in them have the same target.
PACE = frozenset({"batch_size", "gradient_accumulation", "precision", "device", "num_threads", "compute"})
TASK = [field for field in WORK if field not in PACE]
COLUMNS = (
    "target_loss", "steps_to_loss", "time_to_loss_s", "time_to_loss_s_low", "time_to_loss_s_high", "bytes_to_loss",
    "tokens_to_loss", "on_front",
)  # fmt: skip
TYPES = {"step": "int64", "loss": "float64", "step_s": "float64"}  # a loss is blank where nothing was trained
READ = csv.ConvertOptions(include_columns=list(TYPES), column_types=TYPES)
LOSSES = {"run_id": "str", "step": "int64", "elapsed_s": "float64", "loss": "float64"}
BATCH = 1000  # files parsed at once
MAX_STEP_S = 1e9


def read(folder: Path, runs: pd.DataFrame, problems: list[str] | None = None) -> pd.DataFrame:
    """Loss and time of every step of the ok runs that have samples: run_id, cell, step, elapsed_s, loss.

    elapsed_s is the sum of the steps so far, each as long as on its slowest worker; loss is the mean over the
    workers' batches, then over the last WINDOW steps. A file that cannot be read is left out, with a sentence in
    `problems`.
    """
    runs = judged(runs)
    cell_of = runs.loc[runs["status"] == "ok"].set_index("run_id")["cell"]
    paths = [path for run_id in cell_of.index if (path := folder / "steps" / f"{run_id}.csv").is_file()]
    problems = [] if problems is None else problems
    samples = [
        table for start in range(0, len(paths), BATCH) for table in _samples(paths[start : start + BATCH], problems)
    ]
    parts = [_losses(table) for table in samples if len(table)]
    nothing = pd.DataFrame(columns=[*LOSSES]).astype(LOSSES)  # typed: object columns would be slow
    table = pd.concat([nothing, *parts], ignore_index=True)
    return table.assign(cell=table["run_id"].map(cell_of))


def _samples(paths: Sequence[Path], problems: list[str]) -> Iterator[pd.DataFrame]:
    """TYPES and run_id of every row of some files, those with equal columns parsed as one: far faster than each."""
    by_header: defaultdict[bytes, dict[str, bytes]] = defaultdict(dict)
    for path in paths:
        try:
            header, _, rows = read_regular(path).partition(b"\n")
        except OSError as error:
            problems.append(_left_out(path.stem, error.strerror or "it cannot be read"))
            continue
        by_header[header][path.stem] = rows.rstrip(b"\n")
    for header, rows_of in by_header.items():
        try:
            yield _parse(header, rows_of)
        except (pa.ArrowException, ValueError):
            for run_id, rows in rows_of.items():
                try:
                    yield _parse(header, {run_id: rows})
                except (pa.ArrowException, ValueError) as error:
                    problems.append(_left_out(run_id, str(error).splitlines()[0]))


def _parse(header: bytes, rows_of: Mapping[str, bytes]) -> pd.DataFrame:
    """Rows of files with one header, with the run_id of each; ValueError or ArrowException if they are no samples."""
    whole = b"\n".join([header, *(rows for rows in rows_of.values() if rows)])
    steps: pd.DataFrame = csv.read_csv(BytesIO(whole), convert_options=READ).to_pandas()
    counts = [rows.count(b"\n") + 1 if rows else 0 for rows in rows_of.values()]
    if len(steps) != sum(counts) or (steps["step"] < 0).any() or not steps["step_s"].between(0, MAX_STEP_S).all():
        raise ValueError("a row is no step, with a number and a time")
    steps["run_id"] = np.repeat([*rows_of], counts)
    return steps


def _left_out(run_id: str, why: str) -> str:
    return f"steps/{run_id}.csv cannot be read ({why[:120]}): the losses of this run are left out."


def _losses(steps: pd.DataFrame) -> pd.DataFrame:
    """What `read` returns for the samples of some runs."""
    found = steps.groupby(["run_id", "step"], as_index=False).agg(loss=("loss", "mean"), elapsed_s=("step_s", "max"))
    found["elapsed_s"] = found.groupby("run_id")["elapsed_s"].cumsum()
    found["loss"] = trailing_mean(found)
    return found


def trailing_mean(found: pd.DataFrame) -> pd.Series:
    """Per step the mean loss of the run's last WINDOW steps; at its start of as many as there are."""
    sums = found.groupby("run_id")["loss"].cumsum()
    before = sums.groupby(found["run_id"]).shift(WINDOW, fill_value=0.0)
    return (sums - before) / np.minimum(found["step"] + 1, WINDOW)


def add_costs(summary: pd.DataFrame, runs: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """The summary with COLUMNS: the cost of each cell until the lowest loss that every run of its task reached.

    `losses` is what `read` returns. `independent` is left out: each of its workers trains a model of its own.
    """
    runs = runs[is_kind(runs, "trains_one_model")].set_index("run_id")
    task = runs.groupby(TASK, dropna=False).ngroup()
    known = losses[losses["run_id"].isin(runs.index) & losses["loss"].notna()]
    best = known.groupby("run_id")["loss"].min()
    target = best.groupby(task.loc[best.index].to_numpy()).max()
    task_of, targets = known["run_id"].map(task), known["run_id"].map(task).map(target)
    known = known.assign(target_loss=targets.astype("float64"), task=task_of)  # float64 even without rows
    hits = known[known["loss"] <= known["target_loss"]]
    hits = hits.sort_values("step").drop_duplicates("run_id")
    cells = runs.drop_duplicates("cell").set_index("cell")
    work = num_replicas(cells) * cells[["batch_size", "block_size"]].prod(axis=1)
    rows = [_to_loss(str(cell), reached, float(work[cell])) for cell, reached in hits.groupby("cell")]
    reached = summary.merge(pd.DataFrame(rows, columns=["cell", "task", *COLUMNS[:-1]]), on="cell", how="left")
    reached = reached.copy()  # one block: adding columns to many is slow
    reached["bytes_to_loss"] = reached["steps_to_loss"] * bytes_of_all_ranks(reached)
    costs = ["time_to_loss_s", "bytes_to_loss"]
    reached["on_front"] = False
    for _, rivals in reached.dropna(subset=costs).groupby("task"):
        reached.loc[rivals.index, "on_front"] = pareto(rivals[costs].to_numpy(dtype="float64"))
    return reached.drop(columns="task").copy()  # one block per type; a column more is slow on many


def _to_loss(cell: str, reached: pd.DataFrame, tokens_per_step: float) -> dict[str, object]:
    steps = float(reached["step"].median()) + 1
    time = median_interval(reached["elapsed_s"])
    return {
        "cell": cell, "task": reached["task"].iloc[0], "target_loss": reached["target_loss"].iloc[0],
        "steps_to_loss": steps, "tokens_to_loss": steps * tokens_per_step,
        "time_to_loss_s": time.value, "time_to_loss_s_low": time.low, "time_to_loss_s_high": time.high,
    }  # fmt: skip


def bytes_of_all_ranks(summary: pd.DataFrame) -> pd.Series:
    """Counted bytes that all ranks of each cell send in one step; NaN where nothing was counted."""
    of_workers = summary["num_workers"] * summary["bytes_sent_per_worker_per_step"]
    of_servers = summary["num_servers"] * summary["bytes_sent_per_server_per_step"]
    return of_workers + of_servers.where(summary["num_servers"] > 0, 0)


def pareto(costs: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Mask (n,) of the Pareto front of costs (n, k): no other row is at most equal everywhere and less somewhere."""
    at_most = (costs[:, None] <= costs[None]).all(axis=2)
    less = (costs[:, None] < costs[None]).any(axis=2)
    return np.asarray(~(at_most & less).any(axis=0))
