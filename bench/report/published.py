"""The figure of the published corpus: predicted over measured speed, with the band, a line per measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.config import BadInput
from bench.files import write_whole
from bench.predict.published.score import Prediction
from bench.predict.published.table import as_csv, as_markdown

HELD, MISSED, INK = "#0072b2", "#d55e00", "#222222"
LINE_INCHES = 0.15
LIMITS = (0.1, 10.0)


def check_folder(out: Path) -> None:
    """Make the folder if there is none; BadInput if that is impossible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out: {out} cannot be made: {error.strerror}") from None


def write_folder(predictions: Sequence[Prediction], out: Path) -> list[Path]:
    """Write published.csv, published.md and published.svg; return their paths."""
    paths = [out / f"published.{ending}" for ending in ("csv", "md", "svg")]
    write_whole(paths[0], as_csv(predictions))
    write_whole(paths[1], as_markdown(predictions))
    write_figure(predictions, paths[2])
    return paths


def write_figure(predictions: Sequence[Prediction], path: Path) -> None:
    """Write the figure as SVG: a dot is the middle of the prediction over the measurement, a line its band."""
    from bench.report.plotting import import_matplotlib

    import_matplotlib()
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "psring"  # so that the file is the same for the same numbers

    height = LINE_INCHES * (len(predictions) + 2 * len({each.row.study for each in predictions})) + 1
    figure, axes = plt.subplots(figsize=(8, height))
    at, ticks, names = 0.0, list[float](), list[str]()
    previous = ""
    for each in predictions:
        at -= 2 if each.row.study != previous else 1
        previous = each.row.study
        low, high = (_ratio(each, value) for value in (each.low, each.high))
        colour = HELD if each.holds else MISSED
        axes.plot([low, high], [at, at], color=colour, linewidth=2.2, solid_capstyle="butt", alpha=0.6)
        axes.plot([each.ratio], [at], "o" if each.holds else "X", color=colour, markersize=4)
        ticks.append(at)
        names.append(f"{each.row.study}: {each.row.label}")
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(*LIMITS)
    axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.1", "0.2", "0.5", "1", "2", "5", "10"])
    axes.set_yticks(ticks, names, fontsize=6)
    axes.set_ylim(at - 1, 0)
    axes.set_xlabel(
        "predicted over measured speed (line: 90 % band; blue: it holds the measurement; orange cross: missed)"
    )
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _ratio(each: Prediction, value: float) -> float:
    """Return a predicted value over the measured one, as speeds."""
    ratio = value / each.row.value
    return 1 / ratio if each.row.measure == "step_s" else ratio
