"""The maps of `psring predict --map`: who is fastest over nodes and links, and over nodes and model sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from bench.config import RunConfig
from bench.links import parse_rate
from bench.predict import maps
from bench.predict.fit import Fit
from bench.predict.grid import Change
from bench.predict.maps import Square
from bench.report.labels import TEXT
from bench.report.looks import GREY, INK, PAPER
from bench.report.panels import FRAME, WIDTH, decorate
from bench.report.saving import matplotlib_settings, save
from strategies import catalogue

NO_DIFFERENCE = "no difference: a lead within 2 %, or within the 90 % bands of the first two"
SHADES = {"dedicated servers": 0.9, "colocated servers": 0.45, "mixed servers": 0.7}  # of the servers' colour
SHADE = 0.65  # of the others', so that numbers on it can be read
ON_COLOUR = "#111111"  # numbers, on light and on dark paper
ROW = 0.26  # inches between links or models
MAX_TICKS = 8  # of nodes; of more, every second has its number


def write(path: Path, configs: Sequence[RunConfig], fit: Fit, change: Change) -> None:
    """Draw the four maps into a file, whose ending (png, svg, pdf) is its format; the user's point has a ring."""
    with matplotlib_settings():
        drawn = figure(configs, fit, change, maps.LINKS, maps.MODELS, maps.NODES)
    save(drawn, path)


def figure(
    configs: Sequence[RunConfig], fit: Fit, change: Change, links: Sequence[str], models: Sequence[str],
    nodes: Sequence[int],
) -> Figure:  # fmt: skip
    """Return the four maps over these links, models and nodes; the user's point has a ring."""
    heights = [FRAME + ROW * len(across) for across in (links, models)]
    made = Figure(figsize=(2 * WIDTH, sum(heights) + 0.7), layout="constrained", facecolor=PAPER)
    link, model = maps.point(configs)
    seen: dict[str, str] = {}
    for row, (across, mine) in zip(
        made.subplots(2, 2, height_ratios=heights), ((links, change.link or link), (models, change.model or model)),
        strict=True,
    ):  # fmt: skip
        for panel, equal_workers in zip(row, (False, True), strict=True):
            squares = maps.winners(configs, fit, change, across, equal_workers, nodes)
            seen |= _draw(panel, squares, across, mine, max(config.world_size for config in configs), nodes)
            held = "equal workers, servers beside them" if equal_workers else "equal nodes, servers among them"
            decorate(panel, f"Fastest at {held}", names=[_shown(word) for word in across])
            panel.grid(visible=False)
    handles = [Patch(color=colour, label=label) for label, colour in seen.items()]
    handles.append(Patch(facecolor=GREY, alpha=0.3, label=NO_DIFFERENCE))
    made.legend(
        handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=TEXT, labelcolor=INK,
        title="number: times as fast as the second; circle: what was measured", title_fontproperties={"size": TEXT},
    )  # fmt: skip
    made.legends[0].get_title().set_color(INK)
    return made


def _draw(
    panel: Axes, squares: Sequence[Square], across: Sequence[str], mine: str | None, own: int, nodes: Sequence[int]
) -> dict[str, str]:
    """Draw one map, a ring at `own` nodes; return the colour of each strategy in it."""
    seen = {}
    for square in (square for square in squares if square.nodes > 1):
        x, y = nodes.index(square.nodes), across.index(square.across)
        colour = colour_of(square.winner) if square.decided else GREY
        panel.add_patch(_square(x, y, colour, 1.0 if square.decided else 0.3))
        if square.decided:
            seen[square.winner] = colour
            panel.text(x, y, f"{square.lead:.3g}", ha="center", va="center", fontsize=TEXT - 1, color=ON_COLOUR)
    if mine in across:
        x = min(range(len(nodes)), key=lambda i: abs(nodes[i] - own))
        panel.plot(x, across.index(mine), "o", markersize=18, fillstyle="none", color=INK, markeredgewidth=1.6)
    panel.set_xlim(0.5, len(nodes) - 0.5)
    panel.set_ylim(-0.5, len(across) - 0.5)
    named = range(len(nodes) - 1, 0, -1 if len(nodes) <= MAX_TICKS else -2)
    panel.set_xticks(list(named), [f"{nodes[i]:,}" for i in named])
    panel.set_yticks(range(len(across)), [_shown(word) for word in across])
    panel.set_xlabel("nodes")
    return seen


def _square(x: int, y: int, colour: str, alpha: float) -> Patch:
    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, color=colour, alpha=alpha, linewidth=0)


def _shown(word: str) -> str:
    if not word.endswith("bit"):
        return word
    rate = parse_rate(word)
    return f"{rate / 1e9:g} Gbit/s" if rate >= 10**9 else f"{rate / 1e6:g} Mbit/s"


def colour_of(label: str) -> str:
    """The colour of a strategy, lighter; arrangements of servers are shades of the servers' colour."""
    found = {entry.title: entry.colour for entry in catalogue.CATALOGUE.values()}
    found |= dict.fromkeys(SHADES, catalogue.PARAMETER_SERVER.colour)
    shade = SHADES.get(label, SHADE)
    red, green, blue = (1 - shade * (1 - part) for part in to_rgb(found.get(label, GREY)))
    return to_hex((red, green, blue))
