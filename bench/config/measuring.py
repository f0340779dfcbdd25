"""Steps, device, equivalence gate and deadline of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from strategies.options import MAX_COUNT, Knobs, Unit

if TYPE_CHECKING:
    from bench.config.run import RunConfig

# Training is chaotic: runs that differ by rounding diverge exponentially. The equivalence gate compares early.
GATE_STEPS = 10
# Least decrease of the held-out loss, over one process's, of runs that do not promise one process's model.
MIN_CONVERGENCE = 0.8
MAX_THREADS = 1024  # the C libraries reserve memory for each
MAX_TIMEOUT_S = 1e7  # 115 days


class Measuring(Knobs):
    """Steps, device, gate and deadline."""

    steps: Annotated[int, Unit("steps")] = Field(20, ge=1, le=MAX_COUNT)
    """Measured optimizer steps, after the warm-up."""
    warmup_steps: Annotated[int, Unit("steps")] = Field(5, ge=0, le=MAX_COUNT)
    """Optimizer steps before the measured ones: stored, flagged, never counted."""
    eval_batches: Annotated[int, Unit("batches")] = Field(2, ge=0, le=MAX_COUNT)
    """Held-out batches for held_out_loss after the last step."""
    check_equivalence: Annotated[bool, Unit("true or false")] = False
    """Afterwards, train up to 10 steps again and compare the weights of each with one process's on the same batches;
    where a run does not promise them (asp, ssp, compression, sync_every): how far the held-out loss has fallen."""
    allow_nonfinite_loss: Annotated[bool, Unit("true or false")] = False
    """Whether a run is valid although its loss became infinite or NaN: it is then timed and not compared with one
    process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the workers compute; auto: a GPU per local rank where CUDA is, else the CPU."""
    num_threads: Annotated[int, Unit("threads")] = Field(1, ge=1, le=MAX_THREADS)
    """Intra-op CPU threads per rank; equal at every world size, so that scaling compares like with like."""
    peak_flops_per_s: float | None = Field(None, gt=0, le=1e21)
    """Peak arithmetic rate of one worker's device, for mfu; none: known GPUs only, else blank."""
    tuned: str | None = None
    """File of `psring tune` whose knobs for this strategy hold where none is given; none: the defaults."""
    max_foreign_cpu_share: float = Field(0.15, ge=0, le=1)
    """Share of this machine's cores that other processes may use during a run; above it the run is rejected and
    replaced; 1: no limit."""
    timeout_s: float = Field(600.0, ge=1e-3, le=MAX_TIMEOUT_S)
    """Deadline of the whole run; past it every rank prints its Python stack and ends."""


def check(config: RunConfig) -> Iterator[str]:
    """Yield why the equivalence gate cannot compare anything."""
    if config.check_equivalence and config.compute != "real":
        yield f"check_equivalence: compute: {config.compute} trains nothing; use compute: real, or leave it out"
    if config.check_equivalence and not config.exact and not config.eval_batches:
        yield "check_equivalence: it compares held-out losses here; give eval_batches: 2"
