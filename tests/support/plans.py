"""Small sweeps."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bench.sweep.file import Sweep

SWEEPS = Path(__file__).parents[2] / "bench" / "sweeps"
TINY = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "batch_size": 2, "data": "synthetic", "num_threads": 1}
# Other tests may use the cores meanwhile.
SHORT = {"steps": 2, "warmup_steps": 1, "eval_batches": 0, "max_foreign_cpu_share": 1}
QUIET = Console(quiet=True)


def make_sweep(grid: list[dict[str, object]], repeats: int = 1, **defaults: object) -> Sweep:
    return Sweep.model_validate({"defaults": {**TINY, **SHORT, **defaults}, "grid": grid, "repeats": repeats})
