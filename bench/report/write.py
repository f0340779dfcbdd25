"""Write report.html, report.md, tables and figures of a results folder from runs.jsonl and steps/ alone.

The same runs give the same files, byte for byte. Every number in the reports comes from the summary table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from bench import files, records
from bench.config import BadInput
from bench.output import markdown
from bench.report import (
    answer,
    beyond,
    bounds,
    cells,
    commands,
    duels,
    figures,
    loss,
    method,
    modelled,
    sections,
    tables,
)
from bench.report.answer import Answer
from bench.report.looks import INK, PAPER
from bench.report.saving import KINDS
from bench.report.verdicts import MARGIN
from bench.sweep import remaining

TEMPLATES = Path(__file__).with_name("templates")
MAX_ROWS = 60  # of a table in report.md


class Report(NamedTuple):
    """The answer of a report, and the files that hold it, report.html among them."""

    answer: Answer
    files: list[Path]


def write_report(folder: Path, *, allow_mixed: bool = False, margin: float = MARGIN) -> Report:
    """Write the tables, figures/, report.html and report.md into a results folder; return the answer and their paths.

    Speeds that differ by less than `margin` (a share) are equivalent. BadInput if the folder has no runs, or runs of
    different environments without allow_mixed.
    """
    kept = records.read(folder)
    runs = records.frame(kept)
    problems: list[str] = []
    losses = loss.read(folder, runs, problems) if len(runs) else runs
    summary = cells.summarize(runs, allow_mixed=allow_mixed)
    summary = loss.add_costs(summary, runs, losses)
    configs = {record.cell: record.config for record in kept}
    limits = bounds.Bounds(summary, configs)
    summary = limits.added_to(summary)
    compared = duels.duels(runs, margin)
    predicted = modelled.of_runs(kept)
    made = figures.make_figures(summary, compared, losses, margin) | beyond.figures(summary, predicted)
    drawn, descriptions = figures.write_figures(made, folder), figures.DESCRIPTIONS | beyond.DESCRIPTIONS
    found = answer.answer(
        compared, summary, margin, limits, " ".join([unfinished(folder), *problems]).strip(),
        measured=with_disturbed(runs, summary, losses),
    )  # fmt: skip
    by_cell = commands.commands(summary, configs)
    context = {
        "name": folder.resolve().name,
        "answer": found,
        "facts": answer.facts(runs, summary),
        "sections": sections.sections(
            summary,
            duels.precision_effects(runs, margin),
            drawn,
            predicted,
            {cell: config.total_steps for cell, config in configs.items()},
        ),
        "drawn": drawn,
        "method": method.method(margin, float(runs["slowdown"].max())),
        "descriptions": descriptions,
        "environment": read_environment(folder / "environment.json"),
        "sweep": read_text(folder / "sweep.yaml"),
    }
    pictures = {
        name: inline_svg(read_text(folder / "figures" / f"{name}.svg"), name, descriptions[name]) for name in drawn
    }
    texts = {
        "runs.csv": runs.to_csv(index=False),
        "summary.csv": summary.to_csv(index=False),
        "report.html": render("report.html.j2", pictures=pictures, commands=by_cell, **context),
        "report.md": render("report.md.j2", most_rows=MAX_ROWS, **context),
    }
    for name, text in texts.items():
        files.write_whole(folder / name, text)
    write_parquet({"runs.parquet": runs, "summary.parquet": summary}, folder)
    images = [f"figures/{name}.{kind}" for name in drawn for kind in KINDS]
    return Report(found, [folder / name for name in (*texts, "runs.parquet", "summary.parquet", *images)])


def with_disturbed(runs: pd.DataFrame, summary: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """The summary, a cell without an accepted launch with the numbers of its rejected ones, and `only_disturbed`."""
    alone = summary.loc[answer.only_disturbed(summary), "cell"]
    if alone.empty:
        return summary
    counted = cells.with_disturbed(runs)
    table = loss.add_costs(cells.summarize(counted, allow_mixed=True), counted, losses)
    return table.assign(only_disturbed=table["cell"].isin(alone))


def unfinished(folder: Path) -> str:
    """Planned runs that are missing, why, and the command that runs them; blank if there are none."""
    text, name = remaining.of_folder(folder), folder.resolve().name
    command = f"`psring sweep {name}/sweep.yaml --out {name}`"
    return text and f"{text} The command, in the folder that holds {name} and on the same machine: {command}."


def write_parquet(frames: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write each table as Parquet, replaced atomically."""
    for name, frame in frames.items():
        with files.replacing(folder / name) as file:
            frame.convert_dtypes().to_parquet(file, index=False)


def render(template: str, **context: object) -> str:
    """Fill a template. A name that the context lacks raises UndefinedError."""
    return environment_of(template).get_template(template).render(**context)


def environment_of(template: str) -> jinja2.Environment:
    """Where a template and its filters are found; text in HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"markdown": markdown, "compact": tables.compact, "coded": coded}
    return environment


def coded(text: str) -> Markup:
    """Text for HTML in which what stands between backticks is code, and no line begins with a percent sign."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)))).replace(" %", "\u00a0%")


def inline_svg(text: str, prefix: str, description: str) -> str:
    """An SVG file as an element of the page: without prolog, its ids prefixed, its colours those of the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = text.replace(INK, "currentColor").replace(PAPER, "none")
    return text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)


def read_text(path: Path) -> str:
    """The text of a file; empty if there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_environment(path: Path) -> list[tuple[str, str]]:
    """environment.json as pairs of dotted name and value; empty if there is no file, BadInput if it is not JSON."""
    try:
        return flatten("", json.loads(read_text(path) or "{}"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: not JSON ({error}); restore or remove it") from None


def flatten(name: str, value: object) -> list[tuple[str, str]]:
    """{'a': {'b': [1, 2]}} -> [('a.b', '1, 2')]."""
    if isinstance(value, list):
        if not any(isinstance(item, dict | list) for item in value):
            return [(name, ", ".join(str(item) for item in value) or tables.BLANK)]
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return [pair for key in value for pair in flatten(f"{name}.{key}" if name else str(key), value[key])]
    return [(name, tables.BLANK if value in (None, "") else str(value))]
