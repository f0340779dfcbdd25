"""Matplotlib without the user's settings: its own matplotlibrc is read, and drawing needs no window."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from pathlib import Path


def import_matplotlib() -> None:
    """Import matplotlib with its own matplotlibrc and the Agg backend; nothing if it has been imported.

    Matplotlib reads ./matplotlibrc before any other, and its import fails if that file cannot be decoded or if
    MPLBACKEND names a backend that it does not know. Hence the import runs in the library's folder of defaults.
    """
    found = find_spec("matplotlib")
    assert found is not None, "a dependency of psring"
    assert found.origin is not None, "a package with an __init__.py"
    os.environ["MPLBACKEND"] = "agg"
    here = os.open(".", os.O_RDONLY)  # unlike a path, it also leads back to a folder that was removed
    try:
        os.chdir(Path(found.origin).parent / "mpl-data")
        importlib.import_module("matplotlib")
    finally:
        os.fchdir(here)
        os.close(here)
