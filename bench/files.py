"""Files that are written whole or not at all, and refusals before a run rather than after it."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path

from bench.config import BadInput, DiskFull


@contextlib.contextmanager
def raising_disk_full(path: Path) -> Iterator[None]:
    """Raise DiskFull instead of the OSError of a full file system or an exceeded quota."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(f"{path}: {error.strerror}; make room, then the same command runs what is missing") from None


def open_folder(out: Path, resumable: bool = False) -> None:
    """Make the folder of `--out`; BadInput if it cannot be written or is not empty (a sweep's own, if `resumable`)."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise BadInput(f"--out {out}: cannot be written: {error.strerror}") from None
    others = [path.name for path in out.iterdir() if path.name != ".lock"]
    if others and not (resumable and "environment.json" in others):
        raise BadInput(f"--out {out}: not empty ({sorted(others)[0]} is there); choose a new folder")


def check_writable(path: Path) -> None:
    """Raise BadInput if no file can be written there."""
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
    if path.stat().st_size == 0:
        path.unlink()


def write_whole(path: Path, text: str) -> None:
    """Replace a file by renaming a complete one, so that no reader sees half of it."""
    partial = path.with_name(path.name + ".partial")
    with raising_disk_full(path):
        try:
            partial.write_text(text, encoding="utf-8")
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(path)


def write_json(path: Path, value: object) -> None:
    """Replace a file with indented JSON, as `write_whole` does."""
    write_whole(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
