"""The data and the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from strategies.options import MAX_FACTOR, Knobs, Unit

if TYPE_CHECKING:
    from bench.config.run import RunConfig

# What `psring data prepare --dtype` reads, and the dtype of NumPy that it is.
TOKEN_DTYPES = {"bytes": "u1", "uint16": "<u2", "uint32": "<u4", "int64": "<i8",
                "uint16-be": ">u2", "uint32-be": ">u4", "int64-be": ">i8"}  # fmt: skip
MAX_BATCH_SIZE = 1 << 20
MAX_SEED = (1 << 63) - 1  # of torch, NumPy and a column of integers alike


class Data(Knobs):
    """Tokens and batches."""

    data: str = "stdlib"
    """Tokens: stdlib (this Python's own sources, byte by byte), synthetic, or a nanoGPT .bin file."""
    batch_size: Annotated[int, Unit("sequences")] = Field(8, ge=1, le=MAX_BATCH_SIZE)
    """Sequences per worker per step."""
    seed: int = Field(1337, ge=0, le=MAX_SEED)
    """Seed of the initial weights and of the order of the data."""


class Optimizer(Knobs):
    """The optimizer and its settings."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Update rule; on the servers under parameter_server, on every worker otherwise."""
    learning_rate: float = Field(1e-3, gt=0, le=MAX_FACTOR)
    """Step size of the optimizer, constant."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd; adamw uses its betas 0.9 and 0.95."""
    weight_decay: float = Field(0.0, ge=0, le=MAX_FACTOR)
    """Decay of the weight matrices and embeddings; biases and layer norms never decay."""


def check(config: RunConfig) -> Iterator[str]:
    """Yield what is wrong with the batch."""
    if config.batch_size % config.gradient_accumulation:
        yield (
            f"batch_size: {config.batch_size} does not divide into gradient_accumulation: "
            f"{config.gradient_accumulation} equal parts; choose a multiple"
        )
