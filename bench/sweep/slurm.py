"""A batch script that runs a whole sweep inside one Slurm allocation."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from bench.config import BadInput, RunConfig
from bench.processes import PSRING

# Seconds between Slurm's SIGTERM and its SIGKILL: enough to end the ranks and leave a resumable folder.
NOTICE_S = 60

SCRIPT = """\
#!/bin/bash
# One allocation for all of {file}. Submit it with: sbatch [-A ACCOUNT] [-p PARTITION] [-t TIME] FILE
# Every node needs this checkout and its environment at the same path. Submitted again, it runs what is missing.
#SBATCH --job-name=psring
#SBATCH --ntasks={ranks}
#SBATCH --cpus-per-task={threads}
#SBATCH --signal=B:TERM@{notice}
#SBATCH --output={log}
#SBATCH --open-mode=append
exec {command}
"""


def batch_script(cells: Sequence[RunConfig], file: Path, out: Path, options: Sequence[str] = ()) -> str:
    """Return an sbatch script that runs `psring sweep FILE --out OUT OPTIONS`; BadInput if a cell cannot run in a job.

    The job gets as many tasks as the largest cell has ranks. The cells' own launcher starts them there: srun
    directly, mpirun by finding the allocation itself.
    """
    for path in (file, out):
        if not str(path.resolve()).isprintable():
            raise BadInput(f"{str(path)!a}: has a character that cannot be printed; rename it for a batch script")
    if any(cell.launcher == "horovodrun" and cell.world_size > 1 for cell in cells):
        raise BadInput("launcher: horovodrun does not support Slurm allocations; use launcher: srun or mpirun")
    return SCRIPT.format(
        file=file.name,
        ranks=max(cell.world_size for cell in cells),
        threads=max(cell.num_threads for cell in cells),
        notice=NOTICE_S,
        log=_directive_value(f"{out.resolve()}.slurm.log"),
        command=shlex.join([*PSRING, "sweep", str(file.resolve()), "--out", str(out.resolve()), *options]),
    )


def _directive_value(path: str) -> str:
    """Return a path as the value of an #SBATCH option, where % begins a placeholder and a space ends the value."""
    if '"' in path or "\\" in path:
        raise BadInput(f"--out: Slurm cannot write beside {path!r}; choose a folder without quotes and backslashes")
    return '"' + path.replace("%", "%%") + '"'
