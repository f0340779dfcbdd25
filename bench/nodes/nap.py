"""The nap shim: `sched_yield()` sleeps 50 µs, so that ranks that poll leave the few cores to ranks that work."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("nap.c")
COMPILE_TIMEOUT_S = 30.0


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that load the shim (LD_PRELOAD); none where it cannot be compiled.

    Without it psring's own strategies still sleep between polls, in Python; Open MPI's collectives and Horovod do not.
    """
    library = build()
    if library is None:
        return {}
    loaded = [path for path in environ.get("LD_PRELOAD", "").split(":") if path]
    return {"LD_PRELOAD": ":".join([*loaded, str(library)] if str(library) not in loaded else loaded)}


def is_loaded() -> bool:
    """Whether this process has loaded the shim: what LD_PRELOAD names may be missing, empty or no library."""
    return "/psring-nap-" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")


def is_ours(library: Path) -> bool:
    """Whether a file of the cache may be run: a regular file with content, that only this user can have written."""
    try:
        found = library.lstat()
    except OSError:
        return False
    private = not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISREG(found.st_mode) and found.st_size > 0 and found.st_uid == os.geteuid() and private


def build() -> Path | None:
    """Compile the shim once per source and user; return its path.

    None without a C compiler or a writable cache, or where the path has a blank or a colon, at which LD_PRELOAD splits.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    cache = Path(os.environ.get("PSRING_CACHE") or Path.home() / ".cache" / "psring")
    library = cache / f"psring-nap-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}-{os.uname().machine}.so"
    if re.search(r"[\s:]", str(library)):
        return None
    if is_ours(library):
        return library
    if compiler is None:
        return None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            compiled = Path(scratch, library.name)
            command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(compiled), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_TIMEOUT_S)
            compiled.chmod(0o700)
            compiled.replace(library)
    except (OSError, subprocess.SubprocessError):
        return None
    return library
