"""The answer in words: which topology was faster, from which size on, by how much, and what weakens the claim.

Every number comes from the tables of `stats` and `duels`; nothing here is known beforehand.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from bench import intervals
from bench.config import LEAST_CONVERGENCE
from bench.records import LABELS
from bench.report import cells
from bench.report.duels import EQUAL, WORK, crossovers
from bench.report.sections import label_counts
from bench.report.tables import Row, Table, interval, number

WHO = {"ring": "the ring", "server": "the parameter server"}
WITNESSES = ("scaling_efficiency", "scaling_efficiency_per_rank", "held_out_loss")
HEAD = [
    "setting", "equal", "size", "ring", "server", "pairs", "ring ÷ server", "faster",
    "efficiency per worker", "per rank", "held-out loss",
]  # fmt: skip
MAX_LINES = 6  # settings told one by one; the table has all


class Answer(NamedTuple):
    """The headline; per setting what happened; every comparison as a table; what weakens it."""

    headline: str
    lines: list[tuple[str, str]]
    table: Table
    caveats: list[str]


def answer(duels: pd.DataFrame, summary: pd.DataFrame) -> Answer:
    """Ring against parameter server wherever both finished the same work (`duels.duels`)."""
    table = Table("Ring ÷ parameter server, tokens per second", HEAD, [])
    if duels.empty:
        headline = "No answer: there is no size at which both topologies finished the same work."
        return Answer(headline, [], table, [*without_numbers(summary), *caveats(summary, duels)])
    row_of = {str(row["cell"]): row for row in summary.to_dict("records")}
    settings = settings_of(duels)
    for setting, duel in zip(settings, duels.to_dict("records"), strict=True):
        table.rows.append(duel_row(setting, duel, row_of[duel["ring"]], row_of[duel["server"]]))
    told = list(duels.groupby(settings, sort=False))
    lines = [(str(setting), " ".join(sentences(found))) for setting, found in told[:MAX_LINES]]
    if len(told) > MAX_LINES:
        rest = len(told) - MAX_LINES
        lines.append((f"And {plural(rest, 'more setting')}", "See the table of all comparisons."))
    compared = summary[summary["cell"].isin({*duels["ring"], *duels["server"]})]
    return Answer(headline_of(duels), lines, table, [*without_numbers(summary), *caveats(compared, duels)])


def settings_of(duels: pd.DataFrame) -> pd.Series:
    """What each comparison holds equal, in words: place if they differ, precision, batch, and whatever else varies."""
    named = {"precision", "batch_size", *cells.HARNESS}
    within = {field for _, here in duels.groupby("place") for field in cells.varying(here[list(WORK)])}
    apart = [field for field in WORK if field in within - named]
    words = duels["precision"] + ", " + duels["batch_size"].astype(str) + " sequences per worker"
    for field in apart:
        words += [f", {field} {value}" if pd.notna(value) else "" for value in duels[field]]
    return duels["place"] + ", " + words if duels["place"].nunique() > 1 else words


def headline_of(duels: pd.DataFrame) -> str:
    """Who wins at the place that says most: from which size on in a single setting, else how often at the largest."""
    place = min(duels["place"], key=cells.PLACES.index)
    here = duels[duels["place"] == place]
    where = "" if place == cells.PLACES[2] else f"On {place}: " if place == cells.PLACES[1] else "On a network: "
    parts = []
    for equal in EQUAL:
        found = here[here["equal"] == equal]
        if len(found) and settings_of(found).nunique() == 1:
            parts.append(crossover_words(found))
        elif len(found):
            parts.append(f"At equal {equal}, {verdict_counts(crossovers(found))}.")
    return where + " ".join(parts)


def verdict_counts(last: pd.DataFrame) -> str:
    """'the ring is faster in 3 of 4 settings (1.60 to 1.78 times), it is a tie in 1 of 4 settings'."""
    parts = []
    total = plural(len(last), "setting")
    for verdict in ("ring", "server", "tie", "unknown"):
        for sure in (True, False):
            found = last[(last["verdict"] == verdict) & ((last["n"] >= cells.FEW_LAUNCHES) == sure)]
            if len(found):
                parts.append(f"{claim(verdict, sure)} in {len(found)} of {total}{span(found, verdict)}")
    return ", ".join(parts)


def claim(verdict: str, sure: bool) -> str:
    """Who did what: faster with enough launches, ahead with fewer."""
    if verdict in WHO:
        return f"{WHO[verdict]} is {'faster' if sure else 'ahead'}"
    return "it is a tie" if verdict == "tie" else "a single launch gives no verdict"


def span(found: pd.DataFrame, verdict: str) -> str:
    """' (1.60 to 1.78 times)', from the winner's side; nothing for a tie."""
    if verdict not in WHO:
        return ""
    ratios = sorted(found["ratio"] if verdict == "ring" else 1 / found["ratio"])
    ends = dict.fromkeys([number(ratios[0]), number(ratios[-1])])
    return f" ({' to '.join(ends)} times)"


def sentences(duels: pd.DataFrame) -> list[str]:
    """What happened in one setting, at equal workers and at equal ranks."""
    return [crossover_words(duels[duels["equal"] == equal]) for equal in EQUAL if (duels["equal"] == equal).any()]


def crossover_words(duels: pd.DataFrame) -> str:
    """'At equal workers, from 4 on, the ring is faster: 1.80× (1.60–2.00) at 4, …; before, at 2 it is a tie, …'"""
    last = crossovers(duels).to_dict("records")[0]
    by_size = duels.sort_values("size")
    equal, start, end = last["equal"], last["from_size"], last["largest_size"]
    if by_size["size"].nunique() == 1:
        when = f"at {end}"
    else:
        when = "at every size" if start == by_size["size"].min() else f"from {start} on" if start < end else f"at {end}"
    ratios = [advantage(by_size[by_size["size"] == start].to_dict("records")[-1])]
    if start < end:
        ratios = [f"{ratios[0]} at {start}", f"{advantage(by_size.to_dict('records')[-1])} at {end}"]
    words = f"At equal {equal}, {when}, {claim_of(last)}: {', '.join(ratios)}"
    earlier = by_size[by_size["size"] < start]
    said = [f"at {row['size']} {claim_of(row)}, {advantage(row)}" for row in earlier.to_dict("records")]
    return f"{words}; before, {'; '.join(said)}." if said else f"{words}."


def claim_of(duel: Row) -> str:
    """What one comparison shows."""
    return claim(duel["verdict"], duel["n"] >= cells.FEW_LAUNCHES)


def advantage(duel: Row) -> str:
    """The ratio of tokens per second, read from the winner's side: 1.80× (1.60–2.00)."""
    if duel["verdict"] == "server":
        ends = {"ratio": "ratio", "ratio_low": "ratio_high", "ratio_high": "ratio_low"}
        duel = {name: 1 / duel[other] for name, other in ends.items()}
        return times(duel)
    return times(duel) if duel["verdict"] == "ring" else f"ring ÷ server {times(duel)}"


def times(duel: Row) -> str:
    """1.80× (1.60–2.00)."""
    value, *bracket = interval(duel, "ratio").split(" ", 1)
    return " ".join([f"{value}×", *bracket])


def duel_row(setting: str, duel: Row, ring: Row, server: Row) -> list[str]:
    """One comparison as a table row, with scaling efficiency and the loss as witness."""
    arm = plural(server["num_workers"], "worker")
    arm += f" + {plural(server['num_servers'], 'server')}" if server["num_servers"] else ", serving too"
    return [
        setting, str(duel["equal"]), str(duel["size"]), plural(ring["num_workers"], "worker"), arm, str(duel["n"]),
        interval(duel, "ratio"), str(duel["verdict"]), *(versus(ring, server, field) for field in WITNESSES),
    ]  # fmt: skip


def versus(ring: Row, server: Row, field: str) -> str:
    """Both arms' number, the ring's first."""
    return f"{number(ring[field])} : {number(server[field])}"


def plural(count: int, word: str, ending: str = "s") -> str:
    """1 worker, 2 workers."""
    return f"{count} {word}{'' if count == 1 else ending}"


def caveats(compared: pd.DataFrame, duels: pd.DataFrame) -> list[str]:
    """What a reader must know before believing the answer, about the cells it rests on."""
    notes = []
    if len(duels) and duels["n"].min() < cells.FEW_LAUNCHES:
        n = int(duels["n"].min())
        covers = f"; the interval of {n} covers {100 * intervals.confidence(n):.3g} %, not 95 %" if n > 1 else ""
        notes.append(
            f"Weak evidence: as few as {plural(n, 'launch', 'es')} of a cell{covers}. Ahead means that all "
            f"of an interval speaks for one side; with {cells.FEW_LAUNCHES} launches or more it is called faster."
        )
    for label, count in label_counts(compared).items():
        if count and label != "few_launches":
            share = "every cell here" if count == len(compared) else f"{count} of {len(compared)} cells here"
            notes.append(f"{label.replace('_', ' ').capitalize()} ({share}): {LABELS[label]}.")
    other_model = compared["equivalence_error"] > compared["equivalence_bound"]
    leaked = int((other_model | (compared["convergence"] < LEAST_CONVERGENCE)).sum())
    if leaked:
        notes.append(f"Equivalence gate failed in {leaked} of these cells: they computed something else.")
    disagree = int(compared["ledger_agrees"].eq(False).sum())
    if disagree:
        notes.append(f"Counted bytes differ from predicted in {disagree} of these cells.")
    if compared["environment"].nunique() > 1:
        notes.append("Mixed environments: rows differ in hosts, versions or commit; see summary.csv.")
    return notes


def without_numbers(summary: pd.DataFrame) -> list[str]:
    """Which cells came to nothing: 'Without numbers: 3 of 8 cells on emulated nodes (3 invalid). Validity says why.'"""
    lost = []
    for place in (*cells.PLACES, ""):  # it is not known where a cell would have run that never did
        there = summary[summary["place"] == place]
        counts = there.loc[there["status"] != "ok", "status"].value_counts().sort_index()
        if len(counts):
            ends = ", ".join(f"{count} {str(status).replace('_', ' ')}" for status, count in counts.items())
            all_of = f"{counts.sum()} of {plural(len(there), 'cell')} on {place}"
            lost.append(f"{all_of if place else plural(len(there), 'other cell')} ({ends})")
    return [f"Without numbers: {'; '.join(lost)}. Validity says why."] if lost else []


def facts(runs: pd.DataFrame, summary: pd.DataFrame) -> str:
    """How much was run, and when."""
    ok = int((summary["status"] == "ok").sum())
    models = ", ".join(sorted(summary["model"].unique()))
    when = f"started between {min(runs['started_at'])} and {max(runs['started_at'])}"
    return f"{models}: {plural(len(runs), 'run')} of {plural(len(summary), 'cell')}, {ok} of them ok; {when}."


def method() -> list[str]:
    """How the numbers came about."""
    return [
        "Every launch is a fresh set of processes. Warm-up steps are stored, flagged and never counted.",
        "A step lasts as long as on its slowest worker; the rate is the work of all workers over their "
        "common time. Each phase is read from a monotonic clock after waiting for the device.",
        "The launch is the sample, for steps of one launch depend on each other. Numbers are medians over launches, "
        "brackets the exact interval of the sign test, interpolated between order statistics (Hettmansperger and "
        "Sheather, 1986): it covers 95 % from 6 launches on, whatever the distribution. With fewer it is the whole "
        f"range, which covers {coverages()}; no interval without an assumption can do better. One launch has none.",
        "Why no bootstrap there: the percentile bootstrap of a median covers 87 % with 7 launches and 97 % with 9.",
        "Speedup and efficiency are ratios of medians to a baseline that their table names; their interval is the "
        f"percentile bootstrap of the ratio ({intervals.RESAMPLES:,} resamples of each arm on its own, fixed seed), "
        "which covers about 96 % from 5 launches on, 93 % with 4, 90 % with 3, 67 % with 2. Ratios are never averaged.",
        "Ring against server, and one precision against another, are compared in pairs of launches of the same repeat: "
        "drift hits both alike and cancels. The ratio is the median of the pairs', with the exact interval of "
        "as many launches as there are pairs. A verdict needs an interval that leaves out 1; otherwise it is a tie.",
        "Where several cells of a topology have the compared size (numbers of servers, launchers, ring libraries), the "
        "fastest stands for it, which favours the topology with more cells; servers that wait for all workers "
        "only (bsp), for the others learn less from a token. With many comparisons some "
        "intervals leave out 1 by chance.",
        "Cells on a network, on emulated nodes and on one machine are never joined by a line or a ratio.",
        "The equivalence error is the worst of the launches, not their median.",
    ]


def coverages() -> str:
    """'50.0 % with 2 launches, 75.0 % with 3, …': what the range of few launches covers."""
    return ", ".join(f"{100 * intervals.confidence(n):.4g} % with {n}" for n in range(2, 6))
