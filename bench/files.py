"""Files that are written whole or not at all, and refusals before a run rather than after it.

Only regular files are replaced, and only what was created here is removed: a results folder may come from a stranger.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from bench.config import BadInput, DiskFull

MAX_TEXT_BYTES = 1 << 26  # of a file of settings or of a table
# Files that hold what was measured: no flag replaces them.
MEASURED = ("runs.jsonl", "variants.jsonl", "launches.jsonl")


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
    """Make the folder of `--out`; BadInput if it cannot be written or is not empty (a sweep's own, if `resumable`).

    A refused folder is left as it was.
    """
    existed = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in out.iterdir() if path.name != ".lock"]
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        if not existed:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise BadInput(f"--out {out}: cannot be written: {error.strerror}") from None
    if others and not (resumable and "environment.json" in others):
        raise BadInput(f"--out {out}: not empty ({sorted(others)[0]} is there); choose a new folder")


def own_folder(folder: Path, name: str) -> Path:
    """Return the folder `name` in a results folder, made if need be; BadInput if it is a link that leads elsewhere."""
    path = folder / name
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise BadInput(f"{path}: is no folder but a link or a file; remove it")
    with raising_disk_full(path):
        path.mkdir(exist_ok=True)
    return path


def check_writable(path: Path, reads: Iterable[Path | None] = ()) -> None:
    """Raise BadInput if no file can be written there: no folder, no permission, or something else than a file.

    Nor may it be one of those that the command `reads`, or one that holds what a sweep has measured.
    """
    _check_regular(path)
    if path.name in MEASURED:
        raise BadInput(f"{path}: a file of this name holds what was measured; give another name")
    if any(_is_same(path, other) for other in reads if other is not None):
        raise BadInput(f"{path}: is also what this command reads or writes; give another name")
    if not path.parent.is_dir():
        raise BadInput(f"{path}: cannot be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise BadInput(f"{path}: cannot be written: no permission in {path.parent}")


def _is_same(path: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.samefile(other)
    return path.absolute() == other.absolute()


def _check_regular(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BadInput(f"{path}: is a folder, a link, a device or a pipe; only a regular file is replaced")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a new file that replaces `path` at the end of the block; if that fails, nothing has changed.

    Its name is unique, so that two writers do not meet, and the content is on the disk before it is seen under `path`.
    BadInput if `path` is no regular file, DiskFull without room for it.
    """
    _check_regular(path)
    with raising_disk_full(path):
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(number, "wb") as file:
                yield file
                file.flush()
                os.fsync(number)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_regular(path: Path, most: int | None = None) -> bytes:
    """Return the content of a regular file of at most so many bytes; OSError for anything else.

    It does not wait: a device never ends.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(number, "rb") as file:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if most is not None and found.st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes")
        return file.read()


def read_text(path: Path, most: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a regular file in UTF-8, without its BOM; ValueError, with the reason, if there is none."""
    try:
        return read_regular(path, most).decode("utf-8-sig")
    except OSError as error:
        raise ValueError(error.strerror) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; ValueError, with the reason, if it cannot be read or means more than one thing."""
    try:
        return json.loads(read_text(path), object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError("it has too many levels of lists and tables") from None
    except ValueError as error:
        raise ValueError(str(error).partition(";")[0]) from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def write_whole(path: Path, text: str) -> None:
    """Replace a file with a text in UTF-8, so that no reader sees half of it; what UTF-8 cannot hold is escaped."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: object) -> None:
    """Replace a file with indented JSON, as `write_whole` does."""
    write_whole(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
