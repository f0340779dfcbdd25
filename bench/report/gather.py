"""One results folder from many: what `scripts/sweep_mpirun.sh` writes, a folder for each run."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from bench import files, records
from bench.config import BadInput

GATHERED = "all"


def results_folder(folder: Path) -> Path:
    """Return the results folder to report: `folder`, or `folder/all`, written from the results folders in `folder`.

    BadInput if neither it nor a folder in it holds runs.
    """
    if (folder / "runs.jsonl").exists():
        return folder
    parts = sorted(path.parent for path in folder.glob("*/runs.jsonl") if path.parent.name != GATHERED)
    if not parts:
        raise BadInput(f"{folder}: no runs.jsonl there, nor in its folders; give what psring sweep --out wrote")
    return _gather(parts, folder / GATHERED)


def _gather(parts: list[Path], out: Path) -> Path:
    """Write the runs and samples of `parts` to `out`, replaced; runs of the same cell become its repeats."""
    if out.is_symlink() or (out.exists() and not (out / "gathered").exists()):
        raise BadInput(f"{out}: this is where the runs of {out.parent} are gathered; move it away")
    shutil.rmtree(out, ignore_errors=True)
    (out / "steps").mkdir(parents=True)
    files.write_whole(out / "gathered", "".join(f"{part.name}\n" for part in parts))
    repeats: Counter[str] = Counter()
    for part in parts:
        for record in records.read(part):
            repeat = repeats[record.cell]
            repeats[record.cell] += 1
            run_id = f"{record.cell}-r{repeat}"
            records.append(out, record.model_copy(update={"run_id": run_id, "repeat": repeat, "log": ""}))
            samples = part / "steps" / f"{record.run_id}.csv"
            if samples.is_file():
                shutil.copyfile(samples, out / "steps" / f"{run_id}.csv")
        if not (out / "environment.json").exists() and (part / "environment.json").is_file():
            shutil.copyfile(part / "environment.json", out / "environment.json")
    return out
