"""Loss against time, from the raw steps: how long and how many bytes until a loss that every cell reached.

Throughput alone flatters whoever learns less from a token. Warm-up steps train too, so they count here.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyarrow import csv

from bench.intervals import median_interval
from bench.report.cells import WORK, judged

WINDOW = 5  # steps over which the loss is averaged: that of one batch is noise
# Knobs that change how fast a task is learned, not what is learned: cells that differ in them race each other.
PACE = frozenset({"batch_size", "gradient_accumulation", "precision", "device", "num_threads", "compute"})
TASK = [field for field in WORK if field not in PACE]
COLUMNS = (
    "target_loss", "steps_to_loss", "time_to_loss_s", "time_to_loss_s_low", "time_to_loss_s_high", "bytes_to_loss",
    "tokens_to_loss", "on_front",
)  # fmt: skip
TYPES = {"step": "int64", "loss": "float64", "step_s": "float64"}  # a loss is blank where nothing was trained
READ = csv.ConvertOptions(include_columns=list(TYPES), column_types=TYPES)
PROGRESS = {"run_id": "str", "step": "int64", "elapsed_s": "float64", "loss": "float64"}
BATCH = 1000  # files read at once


def read(folder: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """The progress of every ok run whose steps are there: run_id, cell, step, elapsed_s, loss (trailing mean).

    A step ends when its slowest worker ends it; its loss is the mean over the workers' batches.
    """
    runs = judged(runs)
    cell_of = runs.loc[runs["status"] == "ok"].set_index("run_id")["cell"]
    paths = [path for run_id in cell_of.index if (path := folder / "steps" / f"{run_id}.csv").is_file()]
    parts = [_progress(paths[start : start + BATCH]) for start in range(0, len(paths), BATCH)]
    nothing = pd.DataFrame(columns=[*PROGRESS]).astype(PROGRESS)  # typed: columns of objects are slow ever after
    table = pd.concat([nothing, *parts], ignore_index=True)
    return table.assign(cell=table["run_id"].map(cell_of))


def _progress(paths: list[Path]) -> pd.DataFrame:
    """The progress of some runs. Their files are read as one: opening a reader per small file takes far longer."""
    texts = [path.read_bytes().split(b"\n", 1) for path in paths]
    whole = b"\n".join([texts[0][0], *(rows.rstrip(b"\n") for _, rows in texts)])
    steps: pd.DataFrame = csv.read_csv(BytesIO(whole), convert_options=READ).to_pandas()
    steps["run_id"] = np.repeat([path.stem for path in paths], [rows.count(b"\n") for _, rows in texts])
    found = steps.groupby(["run_id", "step"], as_index=False).agg(loss=("loss", "mean"), elapsed_s=("step_s", "max"))
    found["elapsed_s"] = found.groupby("run_id")["elapsed_s"].cumsum()
    found["loss"] = trailing_mean(found)
    return found


def trailing_mean(found: pd.DataFrame) -> pd.Series:
    """The mean loss of the last WINDOW steps of the run up to each, of as many as there are at its start."""
    sums = found.groupby("run_id")["loss"].cumsum()
    before = sums.groupby(found["run_id"]).shift(WINDOW, fill_value=0.0)
    return (sums - before) / np.minimum(found["step"] + 1, WINDOW)


def add_progress(summary: pd.DataFrame, runs: pd.DataFrame, progress: pd.DataFrame) -> pd.DataFrame:
    """The summary with COLUMNS: what each cell needed to reach the lowest loss that every run of its task reached.

    Workers that never talk (`independent`) train models of their own and do not take part.
    """
    runs = runs[runs["strategy"] != "independent"].set_index("run_id")
    task = runs.groupby(TASK, dropna=False).ngroup()
    known = progress[progress["run_id"].isin(runs.index) & progress["loss"].notna()]
    best = known.groupby("run_id")["loss"].min()
    target = best.groupby(task.loc[best.index].to_numpy()).max()
    aim = known["run_id"].map(task).map(target).astype("float64")  # also where there is no step at all
    hits = known.assign(target_loss=aim, task=known["run_id"].map(task))[known["loss"] <= aim]
    hits = hits.sort_values("step").drop_duplicates("run_id")
    work = runs.drop_duplicates("cell").set_index("cell")[["num_workers", "batch_size", "block_size"]].prod(axis=1)
    rows = [_to_loss(str(cell), reached, float(work[cell])) for cell, reached in hits.groupby("cell")]
    reached = summary.merge(pd.DataFrame(rows, columns=["cell", "task", *COLUMNS[:-1]]), on="cell", how="left")
    reached["bytes_to_loss"] = reached["steps_to_loss"] * bytes_of_all_ranks(reached)
    costs = ["time_to_loss_s", "bytes_to_loss"]
    reached["on_front"] = False
    for _, rivals in reached.dropna(subset=costs).groupby("task"):
        reached.loc[rivals.index, "on_front"] = pareto(rivals[costs].to_numpy(dtype="float64"))
    return reached.drop(columns="task")


def _to_loss(cell: str, reached: pd.DataFrame, tokens_per_step: float) -> dict[str, object]:
    steps = float(reached["step"].median()) + 1
    time = median_interval(reached["elapsed_s"])
    return {
        "cell": cell, "task": reached["task"].iloc[0], "target_loss": reached["target_loss"].iloc[0],
        "steps_to_loss": steps, "tokens_to_loss": steps * tokens_per_step,
        "time_to_loss_s": time.value, "time_to_loss_s_low": time.low, "time_to_loss_s_high": time.high,
    }  # fmt: skip


def bytes_of_all_ranks(cells: pd.DataFrame) -> pd.Series:
    """Bytes that all ranks of each cell send in one step, as counted; blank where they were not."""
    of_workers = cells["num_workers"] * cells["bytes_sent_per_worker_per_step"]
    of_servers = cells["num_servers"] * cells["bytes_sent_per_server_per_step"]
    return of_workers + of_servers.where(cells["num_servers"] > 0, 0)


def pareto(costs: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which rows of (n, k) costs no other row beats: at most as much of everything and less of something."""
    at_most = (costs[:, None] <= costs[None]).all(axis=2)
    less = (costs[:, None] < costs[None]).any(axis=2)
    return np.asarray(~(at_most & less).any(axis=0))
