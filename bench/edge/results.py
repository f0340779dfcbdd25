"""What `psring compress` finds, as lines of two files: one per variant, and one per launch that timed it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.config import BadInput

VARIANTS, LAUNCHES, OPTIONS = "variants.jsonl", "launches.jsonl", "compress.json"


class Line(BaseModel):
    """A line of a file of results."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Variant(Line):
    """One variant: what does not depend on the machine's speed."""

    name: str
    """Parts of its recipe, joined by +."""
    status: Literal["ok", "unsupported", "invalid", "failed"] = "ok"
    """unsupported: a library is missing or cannot; invalid: the file does not give the logits of the model; failed: its
    process ended early or took too long."""
    reason: str = ""
    """Why the status is not ok."""
    losses: list[float] = []
    """Mean cross-entropy of every held-out batch, nats per token; the same batches for all variants."""
    num_parameters: int | None = None
    """Weights of the model, the zeros of a pruned one included."""
    nonzero_parameters: int | None = None
    """Weights that are not zero."""
    size_bytes: int | None = None
    """Size of the file on disk."""
    reload_error: float | None = None
    """Largest difference of a logit between the model before it was written and as read again; blank where the library
    quantises the file itself."""
    file: str = ""
    """File in the results folder."""


class Launch(Line):
    """One launch: a process of its own that loads a variant and generates with it."""

    variant: str
    """Name of the variant."""
    repeat: int
    """Number of the repeat; all variants are timed once per repeat, in another order each time."""
    load_s: float
    """Seconds to load the file, libraries imported."""
    prefill_s: float
    """Median seconds to read a prompt of `prompt_tokens`, batch of 1."""
    token_s_p50: float
    """Median seconds per generated token with the KV cache, batch of 1."""
    token_s_p95: float
    """95th percentile of the same."""
    tokens_per_s: float
    """Generated tokens per second, batch of 1."""
    tokens_per_s_batch_8: float
    """Generated tokens per second of all sequences, batch of 8."""
    peak_memory_bytes: int
    """Most resident memory while loading and generating, over that of the process before it loaded the file."""


Kind = TypeVar("Kind", bound=Line)


def append(folder: Path, name: str, line: Line) -> None:
    """Add a line to a file of results; it is on the disk afterwards."""
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write(line.model_dump_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path, name: str, kind: type[Kind]) -> list[Kind]:
    """Return the lines of a file; none if there is no file, BadInput if one cannot be read."""
    path = folder / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        return [kind.model_validate_json(line) for line in lines]
    except ValidationError:
        raise BadInput(f"{path}: is not what psring compress wrote; compress into a new folder") from None
