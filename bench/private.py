"""Private folders for temporary files; what killed processes left is removed by the next process that makes one."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

PREFIX = "psring-of-"
SHARED_MEMORY = Path("/dev/shm")


def make_folder(parent: Path) -> Path:
    """Return a new folder in `parent` that only this user can open and that goes when this process ends.

    The process holds a lock on it while it lives: a folder that nobody has locked was left by one that was killed, and
    is removed first.
    """
    remove_abandoned(parent)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # nobody took it for abandoned before it was locked
            break
        os.close(lock)
    owner = os.getpid()

    def end() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return folder


def remove_abandoned(parent: Path) -> int:
    """Remove the folders in `parent` that processes of this user made and left; return how many there were."""
    found = 0
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _locked(folder):  # BlockingIOError: its process lives
            shutil.rmtree(folder, ignore_errors=True)
            found += 1
    return found


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(number)
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
            raise PermissionError
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)


@cache
def temporary_folder() -> Path:
    """Return this process's own folder for temporary files."""
    return make_folder(Path(tempfile.gettempdir()))


@cache
def _shared_memory_folder() -> Path | None:
    with contextlib.suppress(OSError):
        return make_folder(SHARED_MEMORY)
    return None


def shared_memory_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of Open MPI with which this rank's shared memory lies in a private folder of /dev/shm.

    Without them the segments of ranks that were killed stay there for good. Settings of the user's own stay; empty
    where /dev/shm cannot be written.
    """
    folder = _shared_memory_folder()
    components = ("btl_sm", "btl_vader", "osc_sm", "osc_rdma")  # btl_vader: what Open MPI 4 calls btl_sm
    names = [f"OMPI_MCA_{component}_backing_directory" for component in components]
    return {name: environ.get(name, str(folder)) for name in names} if folder else {}


def session_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings with which Open MPI's mpirun, and no daemon on another host, uses a private folder.

    Settings of the user's own stay.
    """
    if any(name.endswith("_tmpdir_base") for name in environ):
        return {}
    folder = str(temporary_folder())
    return {f"{name}_local_tmpdir_base": folder for name in ("PRTE_MCA_prte", "OMPI_MCA_orte")}  # Open MPI 5, 4
