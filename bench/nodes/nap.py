"""The nap shim: a waiting rank sleeps 50 µs between two polls, so that nodes can share a few cores."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("nap.c")
COMPILE_S = 30.0


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a process must have in its environment to nap; nothing where the shim cannot be built.

    Without it psring's own strategies still nap, in Python; Open MPI's collectives and Horovod poll.
    """
    library = build()
    if library is None:
        return {}
    loaded = [path for path in environ.get("LD_PRELOAD", "").split(":") if path]
    return {"LD_PRELOAD": ":".join([*loaded, str(library)] if str(library) not in loaded else loaded)}


def is_loaded(environ: Mapping[str, str]) -> bool:
    """Whether this process naps in sched_yield()."""
    return "psring-nap" in environ.get("LD_PRELOAD", "")


def build() -> Path | None:
    """Compile the shim once per source and user; None without a C compiler or a place to keep it."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    cache = Path(os.environ.get("PSRING_CACHE") or Path.home() / ".cache" / "psring")
    library = cache / f"psring-nap-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}-{os.uname().machine}.so"
    if library.exists():
        return library
    if compiler is None:
        return None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = Path(scratch, library.name)
            command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(made), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_S)
            made.replace(library)
    except (OSError, subprocess.SubprocessError):
        return None
    return library
