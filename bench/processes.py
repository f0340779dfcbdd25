"""What a process asks the kernel for: to end when its parent does."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def terminate_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def die_with_parent() -> None:
    """Have the kernel end this process when its launcher dies: no orphan rank computes on."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
