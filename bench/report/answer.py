"""The answer of a report: which topology to use, what bounds it, whether it pays, every comparison, the caveats.

Every sentence is made from the tables of `cells` and `duels` and from the limits of `bounds`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import pandas as pd

from bench.config import MIN_CONVERGENCE
from bench.records import LABELS
from bench.report import cells, conclusions, uncompared
from bench.report.bounds import Bounds
from bench.report.duels import BASES, WORK
from bench.report.sections import label_counts
from bench.report.sentences import OPEN, capital, counted, headline, plural, sentences, team_of
from bench.report.tables import BLANK, Row, Table, interval, number
from bench.report.verdicts import MIN_PAIRS, NO_VERDICT
from bench.shape import GPTShape

HEAD = ["setting", "at equal", "ring", "servers", "pairs", "ring ÷ servers", "verdict", "p", "held-out loss",
        "rejected", "weakened by"]  # fmt: skip
MAX_LINES = 6  # settings described in sentences; the table has all
MAX_COUNTED = 2  # sentences of a headline that counts settings
WHERE = {"network": "On a network: ", "emulated nodes": "On emulated nodes: "}


class Answer(NamedTuple):
    """The headline; titled paragraphs; every comparison as a table; the caveats."""

    headline: str
    lines: list[tuple[str, str]]
    table: Table
    caveats: list[str]


def answer(
    duels: pd.DataFrame, summary: pd.DataFrame, margin: float, bounds: Bounds, unfinished: str = "",
    measured: pd.DataFrame | None = None,
) -> Answer:  # fmt: skip
    """Describe the comparisons of `duels.duels`, which were judged with this margin.

    `measured` is the summary with the numbers of cells of which every launch was rejected: sentences state them, and
    the headline says that they were disturbed.
    """
    missing = [unfinished] if unfinished else []
    if duels.empty:
        table = Table("Tokens per second of a ring ÷ those of parameter servers", HEAD, [])
        notes = [*missing, *without_numbers(summary), *caveats(summary, duels)]
        return Answer(uncompared.headline(summary), [], table, notes)
    measured = summary if measured is None else measured
    bounds = bounds if measured is summary else Bounds(measured, bounds.configs)
    rows: dict[str, Row] = {str(row["cell"]): row for row in measured.to_dict("records")}
    duels = duels.assign(setting=settings_of(duels), weakness=weaknesses(duels, rows))
    here = main_place(duels)
    lines = [*reasons(here, rows, measured, margin, bounds), *other_settings(duels, rows, margin)]
    compared = summary[summary["cell"].isin({*duels["ring"], *duels["server"]})]
    notes = [*missing, *without_numbers(summary), *caveats(compared, duels)]
    first = " ".join(filter(None, [headline_of(here, margin, bounds), disturbed(here, rows)]))
    return Answer(first, lines, duel_table(duels, rows), notes)


def only_disturbed(summary: pd.DataFrame) -> pd.Series[bool]:
    """Whether each cell has numbers of rejected launches alone."""
    return (summary["status"] != "ok") & summary["tokens_per_s_with_rejected"].notna()


def disturbed(duels: pd.DataFrame, rows: Mapping[str, Row]) -> str:
    """How many of these comparisons need rejected launches, and by how much others may have slowed those; or blank."""
    found = duels[duels["basis"] == BASES[True]]
    shares = [rows[cell]["disturbance_of_rejected"] for cell in {*found["ring"], *found["server"]}]
    most = max((float(share) for share in shares if pd.notna(share)), default=0.0)
    if not most:
        return ""
    which = "all" if len(found) == len(duels) else f"{len(found)} of the {len(duels)}"
    return (
        f"Something outside the runs disturbed the launches of {which} comparisons, and may have slowed them by up to "
        f"{100 * most:.0f} %: a verdict holds in spite of that, what is smaller is not decided."
    )


def as_text(answer: Answer, width: int) -> str:
    """The answer for a terminal of this width: headline, paragraphs and caveats."""
    wrap = partial(textwrap.fill, width=max(40, width), break_long_words=False, break_on_hyphens=False)
    lines = [wrap(f"{title}. {text}", subsequent_indent="  ") for title, text in answer.lines]
    weak = [wrap(note, initial_indent="- ", subsequent_indent="  ") for note in answer.caveats]
    parts = [wrap(answer.headline), "\n".join(lines), "\n".join(["What weakens this answer:", *weak] if weak else [])]
    return "\n\n".join(part for part in parts if part)


def main_place(duels: pd.DataFrame) -> pd.DataFrame:
    """The comparisons of the most realistic place."""
    place = str(min(duels["place"], key=cells.PLACES.index))
    return duels[duels["place"] == place]


def main_setting(here: pd.DataFrame) -> pd.DataFrame:
    """Of one place, the comparisons of the setting that has most of them, the first of several."""
    most = here["setting"].value_counts(sort=False).idxmax()
    return here.loc[here["setting"] == most]


def settings_of(duels: pd.DataFrame) -> pd.Series:
    """What each comparison holds equal: the place if places differ, precision, batch size, and what else varies."""
    named = {"precision", "batch_size", *cells.HARNESS}
    within = {field for _, here in duels.groupby("place") for field in cells.varying(here[list(WORK)])}
    apart = [field for field in WORK if field in within - named]
    words = duels["precision"] + ", " + duels["batch_size"].astype(str) + " sequences per worker"
    shape = [field for field in apart if field in GPTShape.model_fields]
    if shape and duels.groupby("model")[shape].nunique().le(1).all(axis=None):  # the model's name implies them
        apart = [field for field in apart if field not in shape]
        words = duels["model"] + ", " + words
    for field in apart:
        words += [f", {field} {value}" if pd.notna(value) else "" for value in duels[field]]
    return duels["place"] + ", " + words if duels["place"].nunique() > 1 else words


def headline_of(here: pd.DataFrame, margin: float, bounds: Bounds) -> str:
    """The first sentences about one place; with several settings there, the counts of verdicts."""
    where = WHERE.get(here["place"].iloc[0], "")
    if here["setting"].nunique() == 1:
        return where + " ".join(headline(here, margin, partial(conclusions.reason, bounds=bounds)))
    groups = list(here.groupby(["server_name", "ring_name", "equal"], sort=False))
    return where + " ".join(counted(found) for _, found in groups[:MAX_COUNTED])


def reasons(
    here: pd.DataFrame, rows: Mapping[str, Row], summary: pd.DataFrame, margin: float, bounds: Bounds
) -> Iterator[tuple[str, str]]:
    """The paragraphs about the main setting of a place."""
    setting = main_setting(here)
    largest = conclusions.largest(setting)
    servers = summary[summary["cell"].isin(set(setting["server"])) & summary["tokens_per_s"].notna()]
    steps = {cell: bounds.configs[cell].total_steps for cell in rows}
    ratio = rows[largest[0]["ring"]]["communication_compute_ratio"]
    by_workers = setting["equal"] == "workers"
    gained = setting[by_workers & (setting["verdict"] == "server")].sort_values("size").to_dict("records")
    paragraphs = {
        "What bounds it": conclusions.what_bounds(largest, rows, bounds),
        "Where one dedicated server stops scaling": conclusions.one_server(servers, bounds),
        "At equal workers": "" if by_workers.all() else " ".join(sentences(setting[by_workers], margin)),
        "Worth distributing": conclusions.worth(largest, rows),
        "CPU time": conclusions.cpu(largest, rows, steps),
        "What would turn it round": conclusions.turns([*largest, *gained[-1:]], bounds, ratio, margin),
        "Measured with": conclusions.conditions(setting, rows, bounds),
    }
    several = f" ({setting['setting'].iloc[0]})" if here["setting"].nunique() > 1 else ""
    return ((title + several, text) for title, text in paragraphs.items() if text)


def other_settings(duels: pd.DataFrame, rows: Mapping[str, Row], margin: float) -> list[tuple[str, str]]:
    """Sentences about the settings that the headline does not describe, and whether distributing pays elsewhere."""
    main = main_place(duels)["place"].iloc[0]
    told: list[tuple[str, str]] = []
    paying: list[tuple[str, str]] = []
    for place, here in duels.groupby("place", sort=False):
        if place != main or (here["setting"].nunique() > 1 and not here["verdict"].isin(OPEN).all()):
            told += told_of(str(place), here, margin)
        if place != main:
            setting = main_setting(here)
            title = f"Worth distributing ({setting['setting'].iloc[0]})"
            paying.append((title, conclusions.worth(conclusions.largest(setting), rows)))
    lines, rest = told[:MAX_LINES], len(told) - MAX_LINES
    if rest > 0:
        lines.append((f"And {plural(rest, 'more setting')}", "See the table of all comparisons."))
    return lines + paying


def told_of(place: str, here: pd.DataFrame, margin: float) -> list[tuple[str, str]]:
    """Sentences about each setting of a place; if nothing is decided in any of several, one that counts them."""
    if here["setting"].nunique() > 1 and here["verdict"].isin(OPEN).all():
        groups = [found for _, found in here.groupby(["server_name", "ring_name", "equal"], sort=False)]
        return [(capital(place), " ".join(counted(found) for found in groups[:MAX_COUNTED]))]
    settings = here.groupby("setting", sort=False)
    return [(capital(str(setting)), " ".join(sentences(found, margin))) for setting, found in settings]


def duel_table(duels: pd.DataFrame, rows: Mapping[str, Row]) -> Table:
    """Every comparison, without a column that is the same or blank in every row."""
    lines = [duel_row(duel, rows[duel["ring"]], rows[duel["server"]]) for duel in duels.to_dict("records")]
    *_, losses, rejected, weak = map(set, zip(*lines, strict=True))
    idle = {
        "setting": duels["setting"].nunique() == 1, "held-out loss": losses == {BLANK}, "rejected": rejected == {"0"},
        "weakened by": weak == {BLANK},
    }  # fmt: skip
    kept = [place for place, head in enumerate(HEAD) if not idle.get(head, False)]
    caption = "Tokens per second of a ring ÷ those of parameter servers"
    side = {"ring": "ring", "server": "servers"}
    best = frozenset((row, side[word]) for row, word in enumerate(duels["verdict"]) if word in side)
    shown = [[line[place] for place in kept] for line in lines]
    return Table(caption, [HEAD[place] for place in kept], shown, best=best)


def duel_row(duel: Row, ring: Row, server: Row) -> list[str]:
    """One comparison as a row of HEAD."""
    arm = team_of(duel) + str(duel["server_name"]).partition(" server")[2].lstrip("s")
    if server["placement"] != "dedicated":
        arm = f"{plural(server['num_workers'], 'worker')}, {duel['server_name']}"
    verdict = said(str(duel["verdict"])) + " (fragile)" * bool(duel["fragile"])
    return [
        str(duel["setting"]), f"{duel['size']} {duel['equal']}",
        f"{plural(ring['num_workers'], 'worker')}, {duel['ring_name']}", arm, str(duel["n"]),
        interval(duel, "ratio"), verdict, p_value(duel["p_value"]), versus(ring, server, "held_out_loss"),
        rejected(duel), weakened(ring, server),
    ]  # fmt: skip


def p_value(p: float) -> str:
    """'0.0123', below a thousandth '< 0.001'."""
    return "< 0.001" if p < 0.001 else number(p)


def rejected(duel: Row) -> str:
    """'1, included': how many launches of both cells were rejected, and whether this comparison includes them."""
    return (
        f"{duel['rejected']}, {'included' if duel['basis'] == BASES[True] else 'left out'}" if duel["rejected"] else "0"
    )


def labels_by_side(ring: Row, server: Row) -> dict[str, list[str]]:
    """Labels of either side, those of a whole place left out, each with the sides that carry it."""
    sides = {"ring": set(str(ring["labels"]).split()), "servers": set(str(server["labels"]).split())}
    found = sorted((sides["ring"] | sides["servers"]) - OF_PLACE)
    return {label.replace("_", " "): [side for side, labels in sides.items() if label in labels] for label in found}


def weaknesses(duels: pd.DataFrame, rows: Mapping[str, Row]) -> list[str]:
    """'oversubscribed: only the servers; fragile: …': what a sentence about each comparison must add, or blank."""
    found = []
    for duel in duels.to_dict("records"):
        by_label = labels_by_side(rows[duel["ring"]], rows[duel["server"]])
        parts = [f"{label}: only the {sides[0]}" for label, sides in by_label.items() if len(sides) == 1]
        if duel["fragile"]:
            parts.append(f"fragile: {said(duel['verdict_with_rejected'])} with rejected launches")
        found.append("; ".join(parts))
    return found


def weakened(ring: Row, server: Row) -> str:
    """'oversubscribed (servers)': the labels of one side or both."""
    found = labels_by_side(ring, server)
    return ", ".join(f"{label}{f' ({s[0]})' if len(s) == 1 else ''}" for label, s in found.items()) or BLANK


OF_PLACE = {"emulated", "emulated_compute", "loopback", "few_launches"}  # in the caveats


def versus(ring: Row, server: Row, field: str) -> str:
    """A number of both cells, the ring's first; a dash if neither has it."""
    known = any(pd.notna(row[field]) for row in (ring, server))
    return f"{number(ring[field])} : {number(server[field])}" if known else BLANK


def caveats(compared: pd.DataFrame, duels: pd.DataFrame) -> list[str]:
    """What weakens the answer: missing verdicts, labels, failed checks of the compared cells."""
    notes = []
    without = int((duels["verdict"] == NO_VERDICT).sum()) if len(duels) else 0
    if without:
        notes.append(
            f"No verdict in {without} of {plural(len(duels), 'comparison')}: fewer than {MIN_PAIRS} pairs of launches; "
            "brackets are then the range of the pairs."
        )
    notes += rejections(compared, duels)
    for label, count in label_counts(compared).items():
        if count and label != "few_launches":
            share = "every cell here" if count == len(compared) else f"{count} of {len(compared)} cells here"
            notes.append(f"{label.replace('_', ' ').capitalize()} ({share}): {LABELS[label]}.")
    other_model = compared["equivalence_error"] > compared["equivalence_bound"]
    leaked = int((other_model | (compared["convergence"] < MIN_CONVERGENCE)).sum())
    if leaked:
        notes.append(f"Equivalence gate failed in {leaked} of these cells: they trained another model.")
    disagree = int(compared["ledger_agrees"].eq(False).sum())
    if disagree:
        notes.append(f"Counted bytes differ from predicted in {disagree} of these cells.")
    if compared["environment"].nunique() > 1:
        notes.append("Mixed environments: rows differ in hosts, versions or commit; see summary.csv.")
    return notes


def rejections(compared: pd.DataFrame, duels: pd.DataFrame) -> list[str]:
    """How many launches the guard rejected and the sweep replaced, and which verdicts depend on that."""
    count, replaced = (int(compared[name].sum()) for name in ("rejected", "replacements"))
    if not count:
        return []
    notes = [
        f"{plural(count, 'launch', 'es')} of these cells {'was' if count == 1 else 'were'} rejected because something "
        f"outside the run disturbed {'it' if count == 1 else 'them'}; {replaced} replaced. See Validity."
    ]
    disturbed = duels[duels["basis"] == "with rejected"] if len(duels) else duels
    if len(disturbed):
        notes.append(
            f"{plural(len(disturbed), 'comparison')} include{'s' * (len(disturbed) == 1)} rejected launches, because "
            "the others are too few; the disturbance is added to the margin there."
        )
    fragile = duels[duels["fragile"]] if len(duels) else duels
    for duel in fragile.to_dict("records"):
        notes.append(
            f"Fragile: {duel['server_name']} against {duel['ring_name']} at {duel['size']} {duel['equal']}: "
            f"{said(duel['verdict'])}, but {said(duel['verdict_with_rejected'])} with the rejected launches."
        )
    return notes


def said(verdict: str) -> str:
    """A verdict in a table: 'ring faster', 'servers faster', 'equivalent', 'undecided' or 'no verdict'."""
    return {"ring": "ring faster", "server": "servers faster"}.get(verdict, verdict)


def without_numbers(summary: pd.DataFrame) -> list[str]:
    """'Without numbers: 3 of 8 cells on emulated nodes (3 invalid). See Validity for reasons.', or nothing."""
    lost = []
    for place in (*cells.PLACES, ""):  # "" is the place of a cell that never ran
        there = summary[summary["place"] == place]
        lacking = there[(there["status"] != "ok") & ~only_disturbed(there)]
        counts = lacking["status"].value_counts().sort_index()
        if len(counts):
            ends = ", ".join(f"{count} {str(status).replace('_', ' ')}" for status, count in counts.items())
            all_of = f"{counts.sum()} of {plural(len(there), 'cell')} on {place}"
            lost.append(f"{all_of if place else plural(len(there), 'other cell')} ({ends})")
    return [f"Without numbers: {'; '.join(lost)}. See Validity for reasons."] if lost else []


def facts(runs: pd.DataFrame, summary: pd.DataFrame) -> str:
    """Models, numbers of runs and cells, and when they ran."""
    ok = int((summary["status"] == "ok").sum())
    models = ", ".join(sorted(summary["model"].unique()))
    when = f"started between {min(runs['started_at'])} and {max(runs['started_at'])}"
    return f"{models}: {plural(len(runs), 'run')} of {plural(len(summary), 'cell')}, {ok} of them ok; {when}."
