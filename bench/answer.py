"""The answer in words: which topology was faster, by how much, and what weakens the claim.

Every number comes from the tables of `stats`; nothing here is known beforehand.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from bench import stats
from bench.records import LABELS
from bench.tables import Row, Table, interval, label_counts, number

VERDICTS = {
    "ring_allreduce": "ring-allreduce is faster in {}",
    "parameter_server": "the parameter server is faster in {}",
    "tie": "{} a tie",
    "unknown": "{} without a verdict (a single launch)",
}


WITNESSES = ("scaling_efficiency", "scaling_efficiency_per_rank", "final_loss")
HEAD = [
    "setting", "equal", "ring", "server", "n", "tokens/s ratio", "faster",
    "efficiency per worker", "per rank", "final loss",
]  # fmt: skip


class Answer(NamedTuple):
    """The headline; per setting what happened; the same as a table; what weakens it."""

    headline: str
    lines: list[tuple[str, str]]
    table: Table
    caveats: list[str]


def answer(runs: pd.DataFrame, summary: pd.DataFrame) -> Answer:
    """Ring-allreduce against the parameter server wherever both finished the same work."""
    duels = stats.compare_topologies(runs)
    table = Table("Ring-allreduce ÷ parameter server", HEAD, [])
    if duels.empty:
        headline = "No answer: there is no size at which both topologies finished the same work."
        return Answer(headline, [], table, caveats(summary, duels))
    cells = {str(row["cell"]): row for row in summary.to_dict("records")}
    named = {"precision", "batch_size", "num_servers", *stats.HARNESS}
    apart = [field for field in stats.varying(duels) if field not in named]
    lines: dict[str, list[str]] = {}
    for duel in duels.to_dict("records"):
        ring, server = cells[duel["ring"]], cells[duel["server"]]
        knobs = [f"{field} {duel[field]}" for field in apart]
        setting = ", ".join([str(duel["precision"]), f"{duel['batch_size']} sequences per worker", *knobs])
        lines.setdefault(setting, []).append(duel_line(duel, ring, server))
        table.rows.append(duel_row(setting, duel, ring, server))
    compared = summary[summary["cell"].isin({*duels["ring"], *duels["server"]})]
    said = [(setting, " ".join(sentences)) for setting, sentences in lines.items()]
    return Answer(headline_of(duels), said, table, caveats(compared, duels))


def headline_of(duels: pd.DataFrame) -> str:
    """Who won how often, at equal workers where that was run."""
    equal = "workers" if (duels["equal"] == "workers").any() else "ranks"
    wins = duels.loc[duels["equal"] == equal, "verdict"].value_counts()
    parts = [text.format(wins[verdict]) for verdict, text in VERDICTS.items() if verdict in wins]
    return f"At equal {equal}, of {plural(int(wins.sum()), 'setting')}: {', '.join(parts)}."


def duel_line(duel: Row, ring: Row, server: Row) -> str:
    """One comparison in words: at what size, who, and by how much."""
    servers = plural(server["num_servers"], "server")
    if duel["equal"] == "workers":
        size = f"{plural(duel['size'], 'worker')} each, beside {servers}"
    else:
        arm = f"{plural(server['num_workers'], 'worker')} and {servers}"
        size = f"{plural(duel['size'], 'rank')} each, {plural(ring['num_workers'], 'worker')} against {arm}"
    return f"With {size}: {verdict_of(duel)}."


def duel_row(setting: str, duel: Row, ring: Row, server: Row) -> list[str]:
    """The same as a table row, with scaling efficiency and the loss as witness."""
    arm = f"{plural(server['num_workers'], 'worker')} + {plural(server['num_servers'], 'server')}"
    return [
        setting, str(duel["equal"]), plural(ring["num_workers"], "worker"), arm, str(duel["n"]),
        interval(duel, "ratio"), str(duel["verdict"]), *(versus(ring, server, field) for field in WITNESSES),
    ]  # fmt: skip


def versus(ring: Row, server: Row, field: str) -> str:
    """Both arms' number, the ring's first."""
    return f"{number(ring[field])} : {number(server[field])}"


def plural(count: int, word: str, ending: str = "s") -> str:
    """1 worker, 2 workers."""
    return f"{count} {word}{'' if count == 1 else ending}"


def verdict_of(duel: Row) -> str:
    """The ratio of tokens per second, read from the winner's side."""
    ratio = interval(duel, "ratio")
    ends = {"ratio": "ratio", "ratio_low": "ratio_high", "ratio_high": "ratio_low"}
    turned = {name: 1 / duel[other] for name, other in ends.items()}
    return {
        "unknown": f"ring-allreduce has {ratio} times the server's tokens/s; one launch gives no verdict",
        "tie": f"a tie, ring-allreduce has {ratio} times the server's tokens/s, an interval that includes 1",
        "ring_allreduce": f"ring-allreduce is faster, {ratio} times the tokens/s",
        "parameter_server": f"the parameter server is faster, {interval(turned, 'ratio')} times the tokens/s",
    }[duel["verdict"]]


def caveats(cells: pd.DataFrame, duels: pd.DataFrame) -> list[str]:
    """What a reader must know before believing the answer, about the cells it rests on."""
    notes = []
    if len(duels) and duels["n"].min() < stats.FEW_LAUNCHES:
        notes.append(
            f"Weak evidence: as few as {plural(duels['n'].min(), 'launch', 'es')} of a cell; "
            f"with fewer than {stats.FEW_LAUNCHES} an interval says little."
        )
    for label, count in label_counts(cells).items():
        if count and label != "few_launches":
            share = "every cell here" if count == len(cells) else f"{count} of {len(cells)} cells here"
            notes.append(f"{label.replace('_', ' ').capitalize()} ({share}): {LABELS[label]}.")
    leaked = int((cells["equivalence_error"] > cells["equivalence_bound"]).sum())
    if leaked:
        notes.append(f"Equivalence gate failed in {leaked} of these cells: they computed something else.")
    disagree = int(cells["ledger_agrees"].eq(False).sum())
    if disagree:
        notes.append(f"Counted bytes differ from predicted in {disagree} of these cells.")
    if cells["environment"].nunique() > 1:
        notes.append("Mixed environments: rows differ in hosts, versions or commit; see summary.csv.")
    return notes


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
        "The launch is the sample, for steps of one launch depend on each other. Numbers are medians over "
        "launches, brackets their 95 % percentile bootstrap interval "
        f"({stats.RESAMPLES:,} resamples, fixed seed). One launch has no interval.",
        "The interval of a ratio comes from resampling both arms independently; ratios are never averaged. "
        "A verdict needs an interval that leaves out 1; otherwise it is a tie.",
        "Where several cells of a topology have the compared size (numbers of servers, launchers), the "
        "fastest stands for it, which favours the topology with more cells.",
        "The equivalence error is the worst of the launches, not their median.",
    ]
