"""Defaults and checks of how one copy of the model is split; its knobs are in `strategies.options`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from strategies import catalogue
from strategies.options import ModelParallelOptions

if TYPE_CHECKING:
    from bench.config.run import RunConfig


def defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the knobs of a config whose strategy splits the model, as they are if not given."""
    try:
        entry = catalogue.find(catalogue.full_name(str(values.get("strategy", catalogue.LOCAL.name))))
    except ValueError:
        return {}  # an unknown strategy, which its own validator reports
    if not entry.splits:
        return {}
    size = values.get("model_parallel_size", values.get("num_workers", 1))
    found = {"model_parallel_size": size}
    return found | ({"num_micro_batches": size} if "num_micro_batches" in entry.knobs else {})


def check(config: RunConfig) -> Iterator[str]:
    """Yield knobs that the strategy does not read."""
    for name in config.given(ModelParallelOptions.model_fields):
        if name not in config.kind.knobs:
            yield f"{name}: {config.strategy} does not read it; leave it out"


def unsplittable(config: RunConfig) -> Iterator[str]:
    """Yield why the ranks cannot hold the model's parts, or the batch has too few sequences for them."""
    splits, size, micro = config.kind.splits, config.model_parallel_size, config.num_micro_batches
    if not splits:
        return
    if config.num_workers % size:
        yield (
            f"model_parallel_size: {size} does not divide num_workers: {config.num_workers}; "
            f"choose one of {_divisors(config.num_workers)}"
        )
    if splits == "layers" and config.gpt.n_layer % size:
        yield (
            f"model_parallel_size: {config.gpt.n_layer} layers (n_layer) do not divide into {size} equal stages; "
            f"choose one of {_divisors(config.gpt.n_layer)}"
        )
    if splits == "heads" and config.gpt.n_head % size:
        yield (
            f"model_parallel_size: {config.gpt.n_head} heads (n_head) do not divide among {size} ranks; "
            f"choose one of {_divisors(config.gpt.n_head)}"
        )
    if config.sequence_parallel and config.gpt.block_size % size:
        yield (
            f"sequence_parallel: {config.gpt.block_size} tokens (block_size) do not divide among {size} ranks; "
            f"choose model_parallel_size: one of {_divisors(config.gpt.block_size)}"
        )
    if config.sequence_parallel and config.compute != "real":
        yield f"sequence_parallel: no layers of compute: {config.compute} divide tokens; use compute: real"
    sequences = config.batch_size // config.gradient_accumulation
    if sequences % micro:
        yield (
            f"num_micro_batches: {micro} equal parts cannot be made of the {sequences} sequences of one pass "
            f"(batch_size / gradient_accumulation); choose one of {_divisors(sequences)}"
        )
    if splits == "layers" and config.pipeline_schedule == "1f1b" and micro < size:
        yield (
            f"num_micro_batches: 1f1b needs as many as stages ({size}) or more, not {micro}; "
            "give more, or pipeline_schedule: gpipe"
        )


def _divisors(number: int) -> str:
    return ", ".join(str(each) for each in range(1, number + 1) if number % each == 0)
