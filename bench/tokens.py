"""Files of tokens: recognise those that are not nanoGPT's .bin (little-endian uint16, no header), and convert them."""

from __future__ import annotations

import shlex
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.config import BadInput
from bench.config.training import TOKEN_DTYPES

Integers = npt.NDArray[np.integer[Any]]

BIN_DTYPE = "<u2"
NUMPY_MAGIC = b"\x93NUMPY"
# llm.c's data files: 256 integers of 32 bits (magic, version, number of tokens, zeros), then the tokens.
LLMC_HEADER_BYTES = 1024
LLMC_DTYPES = {20240520: "<u2", 20240801: "<u4"}
CONTAINERS = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstandard", b"\xfd7zXZ": "xz",
              b"BZh": "bzip2", b"PAR1": "Parquet", b"ARROW1": "Arrow", b"\x89HDF": "HDF5"}  # fmt: skip
SAMPLE_BYTES = 1 << 18
MIN_TEXT_BYTES = 32
SPREAD = 16  # more different high bytes than low bytes by this number: the two are exchanged


def check_bin(path: Path) -> None:
    """Raise BadInput, with the command that mends it, unless a file may hold nanoGPT's tokens."""
    if not path.is_file():
        raise BadInput(
            f"data: there is no file {path}; make one: psring data prepare TEXT --out {shlex.quote(str(path))}"
        )
    with path.open("rb") as file:
        sample = file.read(SAMPLE_BYTES)
    found = recognise(sample)
    if found is not None:
        raise BadInput(f"data: {path} holds {found[0]}, not little-endian uint16 tokens; {_mend(path, found[1])}")
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise BadInput(f"data: {path} holds {size} bytes, not a whole number of uint16 tokens; prepare it again")


def big_endian_hint(path: Path) -> str:
    """Return how to mend a file whose tokens are outside the vocabulary only because they are big-endian."""
    return f"they look big-endian: {_mend(path, 'uint16-be')}"


def _mend(path: Path, dtype: str | None) -> str:
    if dtype is None:
        return "unpack it first"
    option = "" if dtype == "bytes" else f" --dtype {dtype}"
    return f"psring data prepare {shlex.quote(str(path))}{option} --out NEW.bin"


def recognise(sample: bytes) -> tuple[str, str | None] | None:
    """Return what the first bytes of a file show it to hold, and the --dtype that reads it.

    None if nothing speaks against little-endian uint16 tokens; the dtype is None for a container, to be unpacked.
    """
    if sample.startswith(NUMPY_MAGIC):
        return "a NumPy array", "bytes"
    if _llmc_dtype(sample):
        return "tokens behind llm.c's header", "bytes"
    for magic, name in CONTAINERS.items():
        if sample.startswith(magic):
            return f"a file of the format {name}", None
    if len(sample) >= MIN_TEXT_BYTES and _is_text(sample):
        return "plain text", "bytes"
    return _recognise_integers(np.frombuffer(sample[: len(sample) // 8 * 8], BIN_DTYPE))


def _is_text(sample: bytes) -> bool:
    try:
        text = sample.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(sample) - 3:
            return False
        text = sample[: error.start].decode("utf-8")  # the sample ends inside a character
    return all(letter.isprintable() or letter.isspace() for letter in text)


def _recognise_integers(words: Integers) -> tuple[str, str | None] | None:
    """Recognise wider integers by halves that are zero or small, and exchanged bytes by how many values each takes."""
    for order, suffix, halves in (("little-endian", "", words), ("big-endian", "-be", words.byteswap())):
        low, high = (halves[0::2], halves[1::2]) if not suffix else (halves[1::2], halves[0::2])
        if low.any() and (not high.any() or (high.max() <= 3 and low.max() > 1000)):
            wide = not (low[1::2] if not suffix else low[0::2]).any()
            bits, name = (64, "int64") if wide else (32, "uint32")
            return f"{order} integers of {bits} bits", name + suffix
    if len(np.unique(words >> 8)) > len(np.unique(words & 0xFF)) + SPREAD or (words.any() and not (words & 0xFF).any()):
        return "big-endian integers of 16 bits", "uint16-be"
    return None


def _llmc_dtype(head: bytes) -> str | None:
    return LLMC_DTYPES.get(struct.unpack("<i", head[:4])[0]) if len(head) >= LLMC_HEADER_BYTES else None


def read_integers(path: Path, dtype: str) -> Integers:
    """Return the tokens of a file; `dtype` is a key of TOKEN_DTYPES, overridden by a header of NumPy or llm.c."""
    with path.open("rb") as file:
        head = file.read(LLMC_HEADER_BYTES)
    llmc = _llmc_dtype(head)
    try:
        if head.startswith(NUMPY_MAGIC):
            found: Integers = np.load(path, mmap_mode="r", allow_pickle=False).reshape(-1)
        elif llmc:
            found = np.fromfile(path, llmc, offset=LLMC_HEADER_BYTES)
        else:
            found = _read_raw(path, dtype)
    except (ValueError, EOFError) as error:
        raise BadInput(f"data prepare: {path} cannot be read: {' '.join(str(error).split())}") from None
    if not np.issubdtype(found.dtype, np.integer):
        raise BadInput(f"data prepare: {path} holds numbers of type {found.dtype}, not integers")
    _check_range(found, path)
    return found


def _read_raw(path: Path, dtype: str) -> Integers:
    kind, size = np.dtype(TOKEN_DTYPES[dtype]), path.stat().st_size
    if size % kind.itemsize:
        raise BadInput(f"data prepare: {path} holds {size} bytes, not a whole number of {dtype}")
    return np.fromfile(path, kind)


def _check_range(tokens: Integers, path: Path) -> None:
    if not len(tokens):
        raise BadInput(f"data prepare: {path} is empty")
    smallest, largest = int(tokens.min()), int(tokens.max())
    if smallest < 0 or largest >= 1 << 16:
        raise BadInput(
            f"data prepare: {path} has token {smallest if smallest < 0 else largest}, "
            "and a .bin file holds tokens from 0 to 65535; is --dtype right?"
        )
