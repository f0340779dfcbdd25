"""Checks of compression and local steps; their knobs are in `strategies.options`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.config.run import RunConfig


def check(config: RunConfig) -> Iterator[str]:
    """Yield contradictions among the knobs that reduce bytes."""
    asked = config.given(("compression", "sync_every"))
    if asked and (not config.kind.has_servers or not config.synchronous):
        yield f"{asked[0]}: needs a parameter_server and consistency: bsp; or leave it out"
    yield from _compression(config)
    yield from _local_steps(config)


def _compression(config: RunConfig) -> Iterator[str]:
    if config.compression != "none" and config.loss_scaling:
        yield "compression: fp16's loss scale would change the scale of the residual; use fp32 or bf16"
    if config.compression in ("int8", "onebit") and config.wire_dtype != "fp32":
        yield f"compression: {config.compression} is a number format itself; leave wire_dtype out"
    if config.compression != "topk" and config.given(("topk_ratio",)):
        yield "topk_ratio: belongs to compression: topk; leave it out"


def _local_steps(config: RunConfig) -> Iterator[str]:
    every = config.sync_every
    if every > 1 and config.server_role == "sum":
        yield "sync_every: the servers update with the change of the workers' weights; leave server_role out"
    if every == 1 and config.given(("outer_learning_rate", "outer_momentum")):
        yield "outer_learning_rate and outer_momentum belong to sync_every above 1; leave them out"
    if config.steps % every or config.warmup_steps % every:
        yield (
            f"sync_every: steps: {config.steps} and warmup_steps: {config.warmup_steps} must both be multiples "
            f"of {every}, so that every run ends where all workers hold the same model"
        )
