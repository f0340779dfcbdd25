"""The nap shim: `sched_yield()` sleeps 50 µs, so that ranks that poll leave the few cores to ranks that work."""

from __future__ import annotations

import hashlib
import os
import shutil
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


def is_loaded(environ: Mapping[str, str]) -> bool:
    """Whether the environment loads the shim."""
    return "psring-nap" in environ.get("LD_PRELOAD", "")


def build() -> Path | None:
    """Compile the shim once per source and user; return its path, None without a C compiler or a writable cache."""
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
            compiled = Path(scratch, library.name)
            command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(compiled), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_TIMEOUT_S)
            compiled.replace(library)
    except (OSError, subprocess.SubprocessError):
        return None
    return library
