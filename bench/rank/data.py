"""Batches of tokens as a pure function of (seed, worker, step).

The workers' batches of a step, concatenated in rank order, are the batch of a single process, so that every topology
can be compared with one process that trains on the same tokens.
"""

from __future__ import annotations

import sysconfig
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench import files, tokens
from bench.config import BadInput, RunConfig

Tokens = npt.NDArray[np.unsignedinteger[Any]]

HELD_OUT_FRACTION = 0.1
SYNTHETIC_TOKENS = 1 << 20


@dataclass(frozen=True)
class Corpus:
    """Training and held-out tokens, and a name that identifies them (source, number of tokens, checksum)."""

    train: Tokens
    held_out: Tokens
    name: str

    def batch(self, config: RunConfig, worker: int, step: int) -> tuple[Tensor, Tensor]:
        """Return (tokens, targets) of one worker for one step, both (batch_size, block_size), int64."""
        # Every worker draws the offsets of the global batch and takes its own rows.
        offsets = _offsets(self.train, config, step, stream=0)
        own = offsets[worker * config.batch_size : (worker + 1) * config.batch_size]
        return _windows(self.train, own, config.gpt.block_size)

    def held_out_batch(self, config: RunConfig, number: int) -> tuple[Tensor, Tensor]:
        """Return held-out (tokens, targets), both (batch_size, block_size); depends on the global batch size."""
        offsets = _offsets(self.held_out, config, number, stream=1)
        return _windows(self.held_out, offsets[: config.batch_size], config.gpt.block_size)


def _offsets(tokens: Tokens, config: RunConfig, step: int, stream: int) -> npt.NDArray[np.int64]:
    generator = np.random.default_rng([config.seed, stream, step])
    return generator.integers(0, len(tokens) - config.gpt.block_size, size=config.global_batch_size)


def _windows(tokens: Tokens, offsets: npt.NDArray[np.int64], block_size: int) -> tuple[Tensor, Tensor]:
    spans = np.stack([tokens[o : o + block_size + 1] for o in offsets]).astype(np.int64)
    rows = torch.from_numpy(spans)
    return rows[:, :-1], rows[:, 1:]


def load(config: RunConfig) -> Corpus:
    """Open the corpus `config.data`; BadInput if it is missing, truncated, too short or outside the vocabulary."""
    if config.data == "stdlib":
        found, name = standard_library(), "stdlib"
    elif config.data == "synthetic":
        generator = np.random.default_rng(config.seed)
        found, name = generator.integers(0, config.gpt.vocab_size, SYNTHETIC_TOKENS).astype(np.uint32), "synthetic"
    else:
        found, name = _open_bin(Path(config.data)), Path(config.data).name
    _check_vocabulary(found, config)
    cut = len(found) - int(len(found) * HELD_OUT_FRACTION)
    if len(found) - cut <= config.gpt.block_size:
        raise BadInput(
            f"data: {name} has {len(found)} tokens, too few for block_size: {config.gpt.block_size}; "
            f"it needs more than {int(config.gpt.block_size / HELD_OUT_FRACTION)}"
        )
    return Corpus(found[:cut], found[cut:], f"{name}, {len(found)} tokens, crc32 {_checksum(found):08x}")


def _checksum(tokens: Tokens) -> int:
    """CRC-32 of the first and last 2^20 tokens: detects other data on another host without reading gigabytes."""
    ends = np.concatenate([tokens[: 1 << 20], tokens[-(1 << 20) :]])
    return zlib.crc32(ends.tobytes())


@lru_cache(maxsize=1)
def standard_library() -> Tokens:
    """Return the source files of this Python's standard library as byte tokens, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if not {"site-packages", "dist-packages", "test", "tests"} & set(path.relative_to(root).parts)
    ]
    return np.frombuffer(b"".join(path.read_bytes() for path in files), dtype=np.uint8)


def _open_bin(path: Path) -> Tokens:
    """Map a nanoGPT .bin file into memory: little-endian uint16 tokens without header."""
    tokens.check_bin(path)
    return np.memmap(path, dtype=tokens.BIN_DTYPE, mode="r")


def _check_vocabulary(found: Tokens, config: RunConfig) -> None:
    largest, size = int(found.max()), config.gpt.vocab_size
    if largest < size:
        return
    problem = f"data: {config.data} has token {largest}, outside vocab_size: {size}"
    if isinstance(found, np.memmap) and int(found.byteswap().max()) < size:
        raise BadInput(f"{problem}; {tokens.big_endian_hint(Path(config.data))}")
    raise BadInput(f"{problem}; give --vocab-size {largest + 1} or more")


def prepare(text: Path, out: Path, dtype: str = "bytes") -> int:
    """Write a file's bytes, or integers of another dtype, as tokens of a nanoGPT .bin file; return their number.

    BadInput if a file cannot be used.
    """
    if not text.is_file():
        raise BadInput(f"data prepare: there is no file {text}")
    found = tokens.read_integers(text, dtype)
    if out.exists() and out.samefile(text):
        raise BadInput(f"data prepare: {out} is the text itself; give --out another name")
    files.check_writable(out)
    try:
        with files.replacing(out) as file:
            file.write(found.astype("<u2").tobytes())
    except OSError as error:
        raise BadInput(f"data prepare: cannot write {out}: {error.strerror}") from None
    return len(found)
