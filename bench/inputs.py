"""The files that runs read, identified by their content: runs that read other content are other runs."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from bench.config import BadInput, RunConfig

FILE_KNOBS = ("tuned", "compute_from", "hostfile")
BLOCK = 1 << 20
BUILT_IN_DATA = ("stdlib", "synthetic")


def identify(configs: Iterable[RunConfig]) -> dict[str, str]:
    """Return the SHA-256 of every file that these runs read, by its path. BadInput if one cannot be read."""
    return {path: _sha256(knob, path) for knob, path in {pair: None for config in configs for pair in _files(config)}}


def paths(config: RunConfig) -> list[Path]:
    """Return the files that a run reads."""
    return [Path(path) for _, path in _files(config)]


def check_same(known: Mapping[str, str], now: Mapping[str, str], folder: Path) -> None:
    """Raise BadInput if a file has another content than when the runs of `folder` read it."""
    for path, digest in now.items():
        if known.get(path, digest) != digest:
            raise BadInput(
                f"{path}: its content is not what the runs in {folder} read; restore the file, or choose a new folder"
            )


def _files(config: RunConfig) -> Iterable[tuple[str, str]]:
    if config.compute == "real" and config.data not in BUILT_IN_DATA:
        yield "data", config.data
    for knob in FILE_KNOBS:
        if getattr(config, knob) is not None:
            yield knob, getattr(config, knob)


def _sha256(knob: str, path: str) -> str:
    try:
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device has no content that stays
            raise BadInput(f"{knob}: {path} is no regular file; copy what it holds into one")
        return _sha256_of(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise BadInput(f"{knob}: {path} cannot be read: {error.strerror}") from None


@lru_cache
def _sha256_of(path: str, *_: int) -> str:
    """Hash a file; again only after it has changed: what `stat` says of it is part of the key."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()
