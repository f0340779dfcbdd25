"""Colour, line, marker and label of a cell, the same in every figure and table.

A strategy has one colour (Okabe and Ito's palette, safe for colour-blind readers); other knobs that vary in the sweep
change line style and marker. In a sweep of a single strategy, its variants have different colours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pandas as pd

from bench.report.cells import COMMUNICATION, HARNESS, is_kind, varying
from bench.shape import GPTShape
from strategies import catalogue

GREY = catalogue.INDEPENDENT.colour
INK, PAPER = catalogue.LOCAL.colour, "#ffffff"  # write.inline_svg replaces both by the page's colours
COLOURS = tuple(entry.colour for entry in catalogue.CATALOGUE.values())
COLOCATED = "#e69f00"
PHASES = {
    "data_s": "#9a9a9a", "forward_s": "#56b4e9", "backward_s": "#e69f00",
    "exposed_communication_s": "#cc79a7", "optimizer_s": "#f0e442",
}  # fmt: skip
LINES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^vPX*"
OFF = {"compression": "none", "sync_every": 1}  # not shown in labels
PANEL = ["place", "precision", "batch_size"]

Curve = tuple[str, dict[str, Any], pd.DataFrame]


def with_looks(ok: pd.DataFrame) -> pd.DataFrame:
    """The ok cells with two more columns: `curve`, its label, and `look`, the style of its line (plot keywords)."""
    within = {field for _, panel in ok.groupby("place") for field in distinguishing_knobs(panel)}
    fields = ["strategy", "num_servers", "placement", *(field for field in distinguishing_knobs(ok) if field in within)]
    variants: dict[str, Iterator[int]] = {name: itertools.count() for name in ok["strategy"].unique()}
    alone = ok["strategy"].nunique() == 1
    ok = ok.assign(curve="", look=None)
    for key, every in ok.groupby(fields, sort=False, dropna=False):
        strategy = str(every["strategy"].iloc[0])
        variant = next(variants[strategy])
        look = {
            "color": colour_of_variant(strategy, variant) if alone else colour_of(every.iloc[0]),
            "linestyle": LINES[variant % len(LINES)],
            "marker": MARKERS[(catalogue.order(strategy) + 5 * variant) % len(MARKERS)],
        }  # fmt: skip
        ok.loc[every.index, "curve"] = curve_label(dict(zip(fields, key, strict=True)))
        ok.loc[every.index, "look"] = pd.Series([look] * len(every), index=every.index)
    return ok


def curves(rows: pd.DataFrame) -> Iterator[Curve]:
    """The curves of a panel: label, style, and rows by number of workers."""
    for label, curve in rows.groupby("curve", sort=False):
        yield str(label), curve["look"].iloc[0], curve.sort_values("num_workers")


def that_communicate(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose workers exchange anything."""
    return rows[is_kind(rows, "communicates")]


def colour_of(cell: pd.Series) -> str:
    """The colour of a cell's strategy; colocated and mixed servers have another one."""
    kind = catalogue.find(cell["strategy"])
    return COLOCATED if kind.has_servers and cell["placement"] != "dedicated" else kind.colour


def colour_of_variant(strategy: str, variant: int) -> str:
    """The colour of the variant-th variant of the only strategy: first the strategy's, then the others."""
    own = catalogue.find(strategy).colour
    palette = [own, *(colour for colour in (*COLOURS, COLOCATED) if colour != own)]
    return palette[variant % len(palette)]


def distinguishing_knobs(ok: pd.DataFrame) -> list[str]:
    """Knobs that vary and are shown neither by an axis nor by a panel or colour: a label must name them."""
    shown = {"strategy", "num_workers", "num_servers", "placement", *PANEL}
    communicating = varying(that_communicate(ok))
    fields = [field for field in varying(ok) if field not in shown | (HARNESS - {"model"})]
    fields = [field for field in fields if field not in COMMUNICATION or field in communicating]
    shape = [name for name in GPTShape.model_fields if name in ok]
    if ok.groupby("model")[shape].nunique().le(1).all(axis=None):  # the model's name implies them
        fields = [field for field in fields if field not in shape]
    return fields


def curve_label(values: dict[str, Any]) -> str:
    """'parameter server, 2 servers, fp16 wire': strategy and the knobs that distinguish it."""
    words = [catalogue.find(values["strategy"]).title]
    if values["num_servers"]:
        words.append(f"{values['num_servers']} server" + "s" * (values["num_servers"] > 1))
    for field, value in values.items():
        if field in COMMUNICATION and not catalogue.find(values["strategy"]).communicates:
            continue  # this strategy does not read it
        if pd.isna(value) or value == OFF.get(field):
            continue
        if field == "wire_dtype":
            words.append(f"{value} wire")
        elif field in ("launcher", "model"):
            words.append(str(value))
        elif field == "placement":
            words += [str(value)] * (value != "dedicated")
        elif field not in ("strategy", "num_servers"):
            words.append(f"{field} {value}")
    return ", ".join(words)
