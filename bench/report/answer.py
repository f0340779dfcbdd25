"""The answer in sentences: which topology was faster on equal work, at which sizes, by how much, and the caveats.

Every number comes from the tables of `cells` and `duels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from bench.config import MIN_CONVERGENCE
from bench.records import LABELS
from bench.report import cells
from bench.report.duels import WORK
from bench.report.sections import label_counts
from bench.report.tables import Row, Table, interval, number
from bench.report.verdicts import EQUIVALENT, MIN_PAIRS, NO_VERDICT, UNDECIDED

BESIDE = ("scaling_efficiency", "scaling_efficiency_per_node", "held_out_loss")
HEAD = [
    "setting", "equal", "size", "ring", "servers", "pairs", "ring ÷ servers", "verdict", "p",
    "efficiency per worker", "per node", "held-out loss",
]  # fmt: skip
MAX_LINES = 6  # settings described in sentences; the table has all
MAX_HEADLINE = 2  # sentences
TIMES_FROM = 1.5  # ratios below are written in percent


class Answer(NamedTuple):
    """The headline; per setting its name and sentences; every comparison as a table; the caveats."""

    headline: str
    lines: list[tuple[str, str]]
    table: Table
    caveats: list[str]


def answer(duels: pd.DataFrame, summary: pd.DataFrame, margin: float) -> Answer:
    """Describe the comparisons of `duels.duels`, which were judged with this margin."""
    table = Table("Tokens per second of a ring ÷ those of parameter servers", HEAD, [])
    if duels.empty:
        headline = "No answer: there is no size at which a ring and a parameter server finished the same work."
        return Answer(headline, [], table, [*without_numbers(summary), *caveats(summary, duels)])
    row_of = {str(row["cell"]): row for row in summary.to_dict("records")}
    duels = duels.assign(setting=settings_of(duels))
    for duel in duels.to_dict("records"):
        table.rows.append(duel_row(duel, row_of[duel["ring"]], row_of[duel["server"]]))
    told = list(duels.groupby("setting", sort=False))
    lines = [(str(setting), " ".join(sentences(found, margin))) for setting, found in told[:MAX_LINES]]
    if len(told) > MAX_LINES:
        rest = len(told) - MAX_LINES
        lines.append((f"And {plural(rest, 'more setting')}", "See the table of all comparisons."))
    compared = summary[summary["cell"].isin({*duels["ring"], *duels["server"]})]
    notes = [*without_numbers(summary), *caveats(compared, duels)]
    return Answer(headline_of(duels, margin), lines, table, notes)


def settings_of(duels: pd.DataFrame) -> pd.Series:
    """What each comparison holds equal: the place if places differ, precision, batch size, and what else varies."""
    named = {"precision", "batch_size", *cells.HARNESS}
    within = {field for _, here in duels.groupby("place") for field in cells.varying(here[list(WORK)])}
    apart = [field for field in WORK if field in within - named]
    words = duels["precision"] + ", " + duels["batch_size"].astype(str) + " sequences per worker"
    for field in apart:
        words += [f", {field} {value}" if pd.notna(value) else "" for value in duels[field]]
    return duels["place"] + ", " + words if duels["place"].nunique() > 1 else words


def headline_of(duels: pd.DataFrame, margin: float) -> str:
    """The first sentences about the most realistic place; with several settings there, the counts of verdicts."""
    place = min(duels["place"], key=cells.PLACES.index)
    here = duels[duels["place"] == place]
    where = {cells.PLACES[0]: "On a network: ", cells.PLACES[1]: "On emulated nodes: "}.get(place, "")
    if here["setting"].nunique() == 1:
        return where + " ".join(sentences(here, margin)[:MAX_HEADLINE])
    groups = list(here.groupby(["server_name", "ring_name", "equal"], sort=False))
    return where + " ".join(counted(found) for _, found in groups[:MAX_HEADLINE])


def counted(duels: pd.DataFrame) -> str:
    """'Colocated servers against Horovod's ring at equal nodes, …: slower in 3 of 4 settings (2 % to 1.6×), …'"""
    last = duels.loc[duels.groupby("setting", sort=False)["size"].idxmax()]
    total = plural(len(last), "setting")
    words = {"ring": "slower", "server": "faster"}
    parts = []
    for verdict in ("ring", "server", EQUIVALENT, UNDECIDED, NO_VERDICT):
        found = last[last["verdict"] == verdict].sort_values("ratio", ascending=verdict == "ring").to_dict("records")
        ends = " to ".join(dict.fromkeys([amount(found[0]), amount(found[-1])])) if found else ""
        if found:
            span = f" ({ends})" if verdict in words else ""
            parts.append(f"{words.get(verdict, verdict)} in {len(found)} of {total}{span}")
    first = last.iloc[0]
    names = f"{capital(first['server_name'])} against {first['ring_name']}"
    return f"{names} at equal {first['equal']}, each setting at its largest size: {', '.join(parts)}."


def sentences(duels: pd.DataFrame, margin: float) -> list[str]:
    """A sentence per verdict about each kind of servers in one setting; decided ones and equal nodes first."""
    groups = [found for _, found in duels.groupby(["server_name", "ring_name", "equal"], sort=False)]
    groups.sort(key=lambda found: (found["equal"].iloc[0] == "workers", -len(found)))
    said: dict[bool, list[str]] = {True: [], False: []}
    for group in groups:
        for verdict, found in group.sort_values("size").groupby("verdict", sort=False):
            decided = verdict not in (UNDECIDED, NO_VERDICT)
            said[decided].append(sentence(str(verdict), found.to_dict("records"), margin))
    return said[True] + said[False]


def sentence(verdict: str, duels: Sequence[Row], margin: float) -> str:
    """One verdict about one kind of servers at one or several sizes."""
    servers, ring = str(duels[0]["server_name"]), str(duels[0]["ring_name"])
    subject, verb = capital(servers), "is" if servers.startswith("one ") else "are"
    if verdict == EQUIVALENT:
        return f"{subject} and {ring} are equivalent (within {100 * margin:g} %) at {sizes(duels)}."
    if verdict in ("ring", "server"):
        word = "slower" if verdict == "ring" else "faster"
        if len(duels) == 1:
            return f"{subject} {verb} {amount(duels[0])} {word} than {ring} at {sizes(duels)}."
        each = listed([f"{amount(duel)} at {sizes([duel])}" for duel in duels])
        return f"{subject} {verb} {word} than {ring}: {each}."
    why = f" (fewer than {MIN_PAIRS} pairs of launches)" if verdict == NO_VERDICT else ""
    ratios = listed([interval(duel, "ratio") for duel in duels])
    return f"{subject} against {ring} at {sizes(duels)}: {verdict}{why}, ring ÷ servers {ratios}."


def sizes(duels: Sequence[Row]) -> str:
    """'2, 4 and 8 nodes'; at equal workers '2 workers (4 nodes instead of 2) and 4 workers (8 nodes instead of 4)'."""
    if duels[0]["equal"] != "workers":
        return f"{listed([str(duel['size']) for duel in duels])} {duels[0]['equal']}"
    return listed([
        f"{plural(duel['size'], 'worker')} ({duel['world_size']} {duel['unit']} instead of {duel['size']})"
        for duel in duels
    ])  # fmt: skip


def amount(duel: Row) -> str:
    """How much faster the faster one is: '3.56×', below TIMES_FROM '3.1 %'."""
    ratio = max(duel["ratio"], 1 / duel["ratio"])
    return f"{number(ratio)}×" if ratio >= TIMES_FROM else f"{100 * (ratio - 1):.1f} %"


def listed(words: Sequence[str]) -> str:
    """'2, 4 and 8'."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def capital(text: str) -> str:
    """The text with its first letter as a capital."""
    return text[:1].upper() + text[1:]


def duel_row(duel: Row, ring: Row, server: Row) -> list[str]:
    """One comparison as a table row, with efficiency and held-out loss of both cells."""
    arm = plural(server["num_workers"], "worker")
    arm += f" + {plural(server['num_servers'], 'server')}" if server["num_servers"] else ", colocated servers"
    verdict = said(str(duel["verdict"])) + " (fragile)" * bool(duel["fragile"])
    return [
        str(duel["setting"]), str(duel["equal"]), str(duel["size"]),
        f"{plural(ring['num_workers'], 'worker')}, {duel['ring_name']}", arm, str(duel["n"]),
        interval(duel, "ratio"), verdict, number(duel["p_value"]), *(versus(ring, server, field) for field in BESIDE),
    ]  # fmt: skip


def versus(ring: Row, server: Row, field: str) -> str:
    """A number of both cells, the ring's first."""
    return f"{number(ring[field])} : {number(server[field])}"


def plural(count: int, word: str, ending: str = "s") -> str:
    """1 worker, 2 workers."""
    return f"{count} {word}{'' if count == 1 else ending}"


def caveats(compared: pd.DataFrame, duels: pd.DataFrame) -> list[str]:
    """What weakens the answer: missing verdicts, labels, failed checks of the compared cells."""
    notes = []
    without = int((duels["verdict"] == NO_VERDICT).sum()) if len(duels) else 0
    if without:
        notes.append(
            f"{without} of {plural(len(duels), 'comparison')} have fewer than {MIN_PAIRS} pairs of launches and no "
            "verdict; their brackets are the range of the pairs."
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
    rejected, replaced = (int(compared[name].sum()) for name in ("rejected", "replacements"))
    if not rejected:
        return []
    notes = [
        f"{plural(rejected, 'launch', 'es')} of these cells rejected because something outside the run disturbed "
        f"{'it' if rejected == 1 else 'them'}, {replaced} replaced (see Validity)."
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
        counts = there.loc[there["status"] != "ok", "status"].value_counts().sort_index()
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
