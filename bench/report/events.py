"""Raw samples of a results folder as TensorBoard event files."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

from bench import files, records
from bench.config import BadInput
from bench.records import PlannedRun, RunRecord

# Columns of steps/<run_id>.csv that are no curve.
NOT_CURVES = ("worker", "step", "warmup")


def write_events(folder: Path) -> list[Path]:
    """Write `tensorboard/<run_id>/` for every run with samples; return the folders.

    One curve per column and worker, against the step. BadInput if TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:  # torch's writer would print a traceback
        raise BadInput("--tensorboard: TensorBoard is not installed; pip install 'psring[tensorboard]'")
    found = [record for record in records.read(folder) if (folder / "steps" / f"{record.run_id}.csv").exists()]
    return [_write_run(folder, record) for record in found]


def _write_run(folder: Path, record: RunRecord) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    out = files.own_folder(files.own_folder(folder, "tensorboard"), record.run_id)
    for old in out.glob("events.*"):  # each SummaryWriter adds a file
        old.unlink()
    with SummaryWriter(str(out)) as writer:
        described = PlannedRun(config=record.config, repeat=record.repeat).describe()
        writer.add_text("run", f"{described}: {record.describe()}")
        with (folder / "steps" / f"{record.run_id}.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for column, value in row.items():
                    if column not in NOT_CURVES and value:
                        curve = f"{column}/worker {row['worker']}"
                        writer.add_scalar(curve, float(value), int(row["step"]))
    return out
