"""Colour, line, marker and label of a cell, the same in every figure and table.

A strategy has one colour (Okabe and Ito's palette, safe for colour-blind readers), a placement of servers one marker;
other knobs that vary in the sweep change the line style. Where a single strategy communicates, its variants have
different colours: a colour per setting of the knobs, or if none varies per arrangement of servers.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pandas as pd

from bench.report.cells import COMMUNICATION, HARNESS, is_kind, varying
from bench.shape import GPTShape
from strategies import catalogue
from strategies.options import STRATEGY_KNOBS

GREY = catalogue.INDEPENDENT.colour
INK, PAPER = catalogue.LOCAL.colour, "#ffffff"  # write.inline_svg replaces both by the page's colours
COLOURS = tuple(entry.colour for entry in catalogue.CATALOGUE.values())
PHASES = {
    "data_s": "#9a9a9a", "forward_s": "#56b4e9", "backward_s": "#e69f00",
    "exposed_communication_s": "#cc79a7", "optimizer_s": "#f0e442",
}  # fmt: skip
LINES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))
MARKERS = {"dedicated": "s", "colocated": "D", "mixed": "X"}  # of cells with servers
MARKER = "o"  # of others
PER_WORKER = "per worker"  # in place of a number of servers
FOLLOWERS = ("model_parallel_size", "num_micro_batches")  # knobs that are the number of workers if not given
WORDS = {"wire_dtype": "{} wire", "launcher": "{}", "model": "{}", "pipeline_schedule": "{}",
         "model_parallel_size": "{} ranks per copy", "num_micro_batches": "{} micro-batches"}  # fmt: skip
OFF = {"compression": "none", "sync_every": 1, "consistency": "bsp", "staleness": 0}  # not shown in labels
PANEL = ["place", "precision", "batch_size"]

Curve = tuple[str, dict[str, Any], pd.DataFrame]


def with_looks(ok: pd.DataFrame) -> pd.DataFrame:
    """The cells with two more columns: `curve`, its label, and `look`, the style of its line (plot keywords)."""
    keys = without_followers(ok)
    knobs = knobs_within_places(keys)
    fields = ["strategy", "num_servers", "placement", *knobs]
    lines, variant = defaultdict[Any, Iterator[int]](itertools.count), variants_of_the_only(keys, knobs)
    keys = keys.assign(num_servers=servers_of_curve(ok))
    ok = ok.assign(curve="", look=None)
    for key, every in keys.groupby(fields, sort=False, dropna=False):
        strategy = str(every["strategy"].iloc[0])
        colour = colour_of_variant(strategy, variant[every.index[0]])
        look = {
            "color": colour,
            "linestyle": LINES[next(lines[strategy, every["placement"].iloc[0], colour]) % len(LINES)],
            "marker": marker_of(every.iloc[0]),
        }  # fmt: skip
        ok.loc[every.index, "curve"] = curve_label(dict(zip(fields, key, strict=True)))
        ok.loc[every.index, "look"] = pd.Series([look] * len(every), index=every.index)
    return ok


def variants_of_the_only(ok: pd.DataFrame, knobs: list[str]) -> pd.Series[int]:
    """The number of each cell's variant, from 0, where a single strategy communicates; else 0 for every cell."""
    numbers = pd.Series(0, index=ok.index)
    talking = that_communicate(ok)
    if talking["strategy"].nunique() == 1:
        vary = [field for field in knobs if talking[field].nunique(dropna=False) > 1]
        apart = talking.assign(num_servers=servers_of_curve(ok))[vary or ["num_servers", "placement"]]
        numbers[talking.index] = apart.groupby(list(apart), sort=False, dropna=False).ngroup()
    return numbers


def without_followers(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells, a knob of FOLLOWERS blank where it and those before it are the number of workers.

    Only if a strategy has that at several sizes.
    """
    follows = pd.Series(True, index=cells.index)
    for knob in (knob for knob in FOLLOWERS if knob in cells):  # a table may leave out what does not vary
        follows &= cells[knob] == cells["num_workers"]
        sizes = cells["num_workers"].where(follows).groupby(cells["strategy"]).transform("nunique")
        cells = cells.assign(**{knob: cells[knob].astype("Int64").mask(follows & (sizes > 1))})
    return cells


def servers_of_curve(ok: pd.DataFrame) -> pd.Series:
    """num_servers, or PER_WORKER for the sizes of a sweep that gives every worker a dedicated server."""
    count = ok["num_servers"].astype("object")
    served = ok["num_servers"] > 0
    equal = served & (ok["num_servers"] == ok["num_workers"])
    by_count = [ok[field] for field in ("strategy", "placement", "num_servers")]
    always = equal.groupby(by_count).transform("all") & (ok["num_servers"] > 1)
    sizes = ok["num_servers"].where(always).groupby([ok["strategy"], ok["placement"]]).transform("nunique")
    return count.mask(always & (sizes > 1), PER_WORKER)


def curves(rows: pd.DataFrame) -> Iterator[Curve]:
    """The curves of a panel: label, style, and rows by number of workers."""
    for label, curve in rows.groupby("curve", sort=False):
        yield str(label), curve["look"].iloc[0], curve.sort_values("num_workers")


def that_communicate(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose workers exchange anything."""
    return rows[is_kind(rows, "communicates")]


def marker_of(cell: pd.Series) -> str:
    """The marker of a cell: that of its placement if it has servers."""
    return MARKERS[cell["placement"]] if catalogue.find(cell["strategy"]).has_servers else MARKER


def colour_of_variant(strategy: str, variant: int) -> str:
    """The colour of the variant-th variant of the only strategy: first the strategy's, then the others."""
    own = catalogue.find(strategy).colour
    palette = [own, *(colour for colour in COLOURS if colour not in (own, INK, GREY)), GREY]
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


def knobs_within_places(cells: pd.DataFrame) -> list[str]:
    """The distinguishing knobs that vary in some place: what differs between places is known from the place."""
    within = {field for _, here in cells.groupby("place") for field in distinguishing_knobs(here)}
    return [field for field in distinguishing_knobs(cells) if field in within]


def curve_label(values: dict[str, Any]) -> str:
    """'2 servers, fp16 wire': strategy or servers, and the knobs that distinguish the cell."""
    kind = catalogue.find(values["strategy"])
    words = [kind.title]
    if kind.has_servers:
        named = [] if kind.name in catalogue.CATALOGUE else words  # a user's own servers have their name, too
        words = [*named, servers_label(values["num_servers"], values["placement"])]
    for field, value in values.items():
        if field in ("strategy", "num_servers", "placement") or pd.isna(value) or value == OFF.get(field):
            continue
        if (field in COMMUNICATION and not kind.communicates) or (field in STRATEGY_KNOBS and field not in kind.knobs):
            continue  # this strategy does not read it
        words.append(WORDS.get(field, f"{field} {{}}").format(value))
    return ", ".join(words)


def servers_label(count: Any, placement: str) -> str:
    """'1 server', '1 server per worker', 'colocated servers' or 'colocated + 1 server'."""
    dedicated = f"1 server {PER_WORKER}" if count == PER_WORKER else f"{count} server" + "s" * (count != 1)
    return {"dedicated": dedicated, "colocated": "colocated servers", "mixed": f"colocated + {dedicated}"}[placement]
