"""The model of cost beyond what was measured: the step time of a cell from calibrated costs. No torch, no MPI.

    from bench.config import make_config
    from bench.predict import Cell, ClusterCalibration, step_time

    config = make_config({"strategy": "ring_allreduce", "num_workers": 512, "model": "gpt2", "compute": "emulated",
                          "device_model": "a100", "device_mfu": 0.4, "precision": "bf16", "link": "25gbit"}, "example")
    found = step_time(Cell(config, ranks_per_node=8), ClusterCalibration(latency_s=20e-6))
    found.step_s, found.tokens_per_s, found.bound, found.exposed_communication_s

`Cell`: a RunConfig (knobs, model, link, durations of emulated compute), ranks per node, and the allreduce that runs.
`ClusterCalibration`: the costs of hosts and links, every one with a default; `ClusterCalibration.read(path)` and
`.write(path)` are the JSON of `--calibration`; `calibration.model_copy(update={"latency_s": 0.0})` is the same cluster
without a cost, so that the difference of two `step_time(...).step_s` is what that cost adds.
`Breakdown`: the step and what each resource spends in it.
"""

from __future__ import annotations

from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Algorithm, Cell, Workload
from bench.predict.step import Breakdown, step_time

__all__ = ["Algorithm", "Breakdown", "Cell", "ClusterCalibration", "Workload", "step_time"]
