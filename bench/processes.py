"""How psring's own processes are started, and that they end with their parent (prctl(2), PR_SET_PDEATHSIG)."""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

# -P (Python 3.11) keeps the current directory out of sys.path: a folder there may be called `bench`, too.
PSRING = [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), "-m", "bench.cli"]
# The same command in a process that a template forks, where there is one (sweep/template.py).
FORKED_PSRING = [sys.executable, "-I", "-S", str(Path(__file__).with_name("fork_client.py").resolve())]

rank_start = "exec"  # "template" in a process that a template has forked
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def terminate_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def die_with_parent() -> None:
    """Have the kernel send this process SIGKILL when its parent dies: no rank survives its launcher."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
