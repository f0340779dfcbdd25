"""Figures as files, whatever the user's matplotlibrc says: the same figure gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bench import files

KINDS = ("svg", "png", "pdf")
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "psring", "font.size": 9.0,
    "axes.titley": 1.0,  # without it, every title makes matplotlib measure the whole panel again
    "text.parse_math": False,  # a $ in a path is no formula
}  # fmt: skip
NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {}, "pdf": {"CreationDate": None}}


@contextmanager
def matplotlib_settings() -> Iterator[None]:
    """Matplotlib's defaults with STYLE; the former settings afterwards. Figures are made and saved within."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def save(figure: Figure, *paths: Path) -> None:
    """Write a figure into files, whose endings (svg, png, pdf) are their formats."""
    with matplotlib_settings():
        layout = figure.get_layout_engine()
        if layout is not None:
            layout.execute(figure)  # once for all formats
            figure.set_layout_engine(None)  # else savefig lays out again for every format
        for path in paths:
            kind = path.suffix.lstrip(".").lower()
            with files.replacing(path) as file:
                figure.savefig(file, format=kind, metadata=NO_DATE[kind], dpi=150)
