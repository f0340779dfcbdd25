"""What `psring compress` finds, as lines of two files: one per variant, and one per launch that timed it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.config import BadInput, first_problem
from bench.files import read_text

VARIANTS, LAUNCHES, OPTIONS = "variants.jsonl", "launches.jsonl", "compress.json"


# Bounds are beyond what a machine takes or holds: a number outside was not measured.
Seconds = Annotated[float, Field(gt=0, le=1e6)]
Rate = Annotated[float, Field(gt=0, le=1e12)]
Count = Annotated[int, Field(ge=0, le=1 << 60)]
Loss = Annotated[float, Field(ge=0, le=1e6)]
Name = Annotated[str, Field(pattern="^[a-z0-9_+]{1,80}$")]


class Line(BaseModel):
    """A line of a file of results."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Variant(Line):
    """One variant: what does not depend on the machine's speed."""

    name: Name
    """Parts of its recipe, joined by +."""
    status: Literal["ok", "unsupported", "invalid", "failed"] = "ok"
    """unsupported: a library is missing or cannot; invalid: the file does not give the logits of the model; failed: its
    process ended early or took too long."""
    reason: str = ""
    """Why the status is not ok."""
    losses: list[Loss] = []
    """Mean cross-entropy of every held-out batch, nats per token; the same batches for all variants."""
    num_parameters: Count | None = None
    """Weights of the model, the zeros of a pruned one included."""
    nonzero_parameters: Count | None = None
    """Weights that are not zero."""
    size_bytes: Count | None = None
    """Size of the file on disk."""
    reload_error: float | None = None
    """Largest difference of a logit between the model before it was written and as read again; blank where the library
    quantises the file itself."""
    file: str = ""
    """File in the results folder."""


class Launch(Line):
    """One launch: a process of its own that loads a variant and generates with it."""

    variant: Name
    """Name of the variant."""
    repeat: Count
    """Number of the repeat; all variants are timed once per repeat, in another order each time."""
    load_s: Annotated[float, Field(ge=0, le=1e6)]
    """Seconds to load the file, libraries imported."""
    prefill_s: Seconds
    """Median seconds to read a prompt of `prompt_tokens`, batch of 1."""
    token_s_p50: Seconds
    """Median seconds per generated token with the KV cache, batch of 1."""
    token_s_p95: Seconds
    """95th percentile of the same."""
    tokens_per_s: Rate
    """Generated tokens per second, batch of 1."""
    tokens_per_s_batch_8: Rate
    """Generated tokens per second of all sequences, batch of 8."""
    peak_memory_bytes: Count
    """Most resident memory while loading and generating, over that of the process before it loaded the file."""


Kind = TypeVar("Kind", bound=Line)


def append(folder: Path, name: str, line: Line) -> None:
    """Add a line to a file of results; it is on the disk afterwards."""
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write(line.model_dump_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path, name: str, kind: type[Kind]) -> list[Kind]:
    """Return the lines of a file, without a last one that its writer did not end; none if there is no file.

    BadInput, with the number of the line, if one cannot be read.
    """
    path = folder / name
    if not path.exists():
        return []
    try:
        lines = read_text(path).split("\n")
    except ValueError as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found += [kind.model_validate_json(line)] if line.strip() else []
        except ValidationError as error:
            if number < len(lines):
                why = first_problem(error, kind.model_fields)
                raise BadInput(f"{path}:{number}: is not what psring compress wrote: {why}; remove the line") from None
    return found
