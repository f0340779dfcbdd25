"""The report's section on what was not measured: its text, prediction over measurement, and maps of who is fastest."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.links import parse_rate
from bench.predict.explain import MAX_FITTED
from bench.predict.grid import Change
from bench.predict.maps import LINKS, MODELS, NODES, point
from bench.report import maps
from bench.report.figures import to_draw
from bench.report.looks import PANEL, curves, with_looks
from bench.report.modelled import FURTHER, MAX_CELLS, Modelled
from bench.report.panels import SIZE, grid, points, rate_axis, size_axis
from bench.report.saving import matplotlib_settings

TITLE = "Beyond what was measured"
DESCRIPTIONS = {
    "prediction": "Tokens per second against size, both axes logarithmic. Lines: predicted, shaded: their 90 % bands; "
    "markers: measured.",
    "maps": "Who is fastest over nodes and links, and over nodes and model sizes, at equal nodes and at equal workers. "
    "Grey: the model sees no difference; circle: what was measured.",
}
FARTHEST = 10  # times the measured rate of links, and a tenth of it
MOST_NODES = 8  # times the measured ones


def text(found: Modelled) -> str:
    """What the figures show, or why there is none."""
    if found.fit is None:
        return f"Nothing is predicted here: {found.why_not}. `psring predict` can predict from a description alone."
    words = (
        f"The model of cost (docs/predict.md), fitted to {min(found.num_known, MAX_FITTED)} of these cells, predicts "
        f"each of them and up to {FURTHER[-1]} times as many nodes. That markers lie on lines is no test, because the "
        "fit has seen them; psring validate holds cells out. "
    )
    if not found.configs:
        return words + "There is no map of who is fastest: only one strategy could be predicted, or none at equal work."
    return words + (
        "The maps show who is fastest and by what factor over the second: at equal nodes, where dedicated servers are "
        "nodes too, a quarter of them; and at equal workers, where as many stand beside. A lead within 2 %, or within "
        "the 90 % bands of the first two, is no difference; bands grow with the distance from what was measured."
    )


def figures(summary: pd.DataFrame, found: Modelled) -> dict[str, Figure]:
    """The figures by name; none where nothing is predicted."""
    made: dict[str, Figure] = {}
    if found.fit is None:
        return made
    with matplotlib_settings():
        rows = _that_scale(with_looks(to_draw(summary)), found.predicted)
        if len(rows):
            made["prediction"] = _prediction(rows, found.predicted)
        if found.configs:
            links, models, nodes = _around(found)
            made["maps"] = maps.figure(found.configs, found.fit, Change(link=found.link), links, models, nodes)
    return made


def _that_scale(rows: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """The predicted cells of settings in which some curve has two sizes or more."""
    rows = rows[rows["cell"].isin(predicted["cell"]) & ~rows["disturbed"]]
    sizes = rows.groupby([*PANEL, "curve"])[SIZE].transform("nunique")
    most = sizes.groupby([rows[name] for name in PANEL]).transform("max")
    return rows[most > 1]


def _prediction(rows: pd.DataFrame, predicted: pd.DataFrame) -> Figure:
    """Predicted lines with their bands, and measured markers."""

    def draw(axes: Axes, shown: pd.DataFrame) -> None:
        here = predicted[predicted["cell"].isin(shown["cell"])]
        for label, look, curve in curves(shown):
            line = here[here["cell"].isin(curve["cell"])].sort_values(SIZE)
            bare: Any = {**look, "markevery": [], "markersize": 5}  # markers are those of measurements
            axes.plot(line[SIZE], line["predicted"], **bare, linewidth=1.2, label=label)
            axes.fill_between(
                line[SIZE], line["predicted_low"], line["predicted_high"], color=look["color"], alpha=0.15, linewidth=0
            )  # fmt: skip
            points(axes, curve, "tokens_per_s", SIZE, label=f"_{label}", **{**look, "linestyle": ""})
        size_axis(axes, list(here[SIZE]))
        rate_axis(axes, [*here["predicted_low"], *here["predicted_high"], *shown["tokens_per_s"]])

    return grid(rows, {"tokens per second": draw}, SIZE, key="line: predicted, marker: measured")


def _around(found: Modelled) -> tuple[list[str], list[str], list[int]]:
    """The links, models and nodes of the maps: those around what was measured."""
    link, model = point(found.configs)
    links = list(LINKS)
    if link:
        links[links.index(link)] = found.link or link  # the measured rate itself
        mine = parse_rate(links[LINKS.index(link)])
        links = [one for one in links if 1 / FARTHEST <= parse_rate(one) / mine <= FARTHEST]
    here = MODELS.index(model) if model in MODELS else 0
    models = list(MODELS[max(0, here - 2) : here + 3])
    return links, models, [n for n in NODES if n <= MOST_NODES * found.most_nodes]


def parts_remark(found: Modelled) -> str:
    """Which cells the table of parts leaves out, and why; empty if none."""
    words = []
    if found.num_known > MAX_CELLS:
        words.append(
            f"The first {MAX_CELLS} of {found.num_known} cells are shown; `psring explain DIR` prints all of them."
        )
    for why, number in found.unknown.items():
        words.append(f"{number} cell{'s are' if number > 1 else ' is'} left out and without a bound: {why}.")
    return " ".join(words)
