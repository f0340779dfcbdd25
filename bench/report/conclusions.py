"""What follows from the largest comparisons of one setting: what bounds them, whether distributing pays, what it costs.

Each function returns a paragraph, blank where the data say nothing about its question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from bench.nodes.limits import COMPUTE, NETWORK, SERVER_LINK
from bench.report.bounds import Bounds, durations_of
from bench.report.sentences import TIMES_FROM, arm_name, capital, faster_by, listed, plural, sizes
from bench.report.tables import BYTES, SECONDS, Row, interval, number, scaled
from bench.report.verdicts import EQUIVALENT
from strategies.catalogue import LOCAL

FACTORS = 2.0 ** np.arange(0, 8.01, 0.05)  # of the links' rate, tried in both directions
NO_LINK = {
    "one machine": "There is no link: messages cross this machine's memory.",
    "network": "The network's rate is not known to psring, so no bound is computed.",
}
ALONE = "one process"
AGREES = 1.25  # largest factor between a measured ratio and that of the limits where these are believed
PAYS_FROM = 1.1  # times as fast as one process
Cells = Mapping[str, Row]


def largest(duels: pd.DataFrame) -> list[Row]:
    """The comparisons at the largest size, at equal nodes if there are any."""
    equal = duels[duels["equal"] != "workers"]
    equal = equal if len(equal) else duels
    return list(equal[equal["size"] == equal["size"].max()].to_dict("records"))


def at(duels: Sequence[Row]) -> str:
    """'8 nodes'."""
    return f"{duels[0]['size']} {duels[0]['equal']}"


def arms(duels: Sequence[Row]) -> dict[str, str]:
    """Names of what is compared, by cell; the ring first."""
    return {duels[0]["ring"]: str(duels[0]["ring_name"])} | {duel["server"]: arm_name(duel) for duel in duels}


def what_bounds(duels: Sequence[Row], rows: Cells, bounds: Bounds) -> str:
    """For each topology what takes longest in its step, and how far the step is above the shortest possible."""
    known = {cell: name for cell, name in arms(duels).items() if cell in bounds and pd.notna(rows[cell]["step_s"])}
    if not known:
        return NO_LINK.get(str(duels[0]["place"]), "The links' rate or the volume is not known.")
    parts = [f"{capital(name)}: {bound_of(cell, rows[cell], bounds)}." for cell, name in known.items()]
    return f"At {at(duels)}: {' '.join(parts)}"


def bound_of(cell: str, row: Row, bounds: Bounds) -> str:
    """'bounded by computing (300 ms, and 67 ms of waiting for gradients); a step takes 376 ms, 2 % more'."""
    found, step_s = bounds.of(cell), float(row["step_s"])
    server = "the server's link" if row["num_servers"] == 1 else "each server's link"
    resource, seconds = {
        COMPUTE: ("computing", found.compute_s),
        NETWORK: ("each worker's link", found.worker_link_s),
        SERVER_LINK: (server, found.server_link_s),
    }[found.bounded_by]
    parts = [scaled(seconds, SECONDS)]
    if found.min_step_s > 1.01 * seconds:
        other = "communication that it cannot hide" if found.bounded_by == COMPUTE else "waiting for gradients"
        parts.append(f"and {scaled(found.min_step_s - seconds, SECONDS)} of {other}")
    ratio = step_s / found.min_step_s
    above = round(100 * (ratio - 1))
    far = f"{number(ratio)}× that" if ratio > TIMES_FROM else f"{above} % more" if above > 0 else "no more than that"
    return f"bounded by {resource} ({', '.join(parts)}); a step takes {scaled(step_s, SECONDS)}, {far}"


def reason(duel: Row, bounds: Bounds) -> str:
    """Why servers are slower than the ring; blank if the limits do not say."""
    cell = duel["server"]
    if cell not in bounds:
        return ""
    found, servers, total = bounds.of(cell), int(duel["num_servers"]), int(duel["world_size"])
    if found.bounded_by == SERVER_LINK:
        workers = saturated_from(found.compute_s, found.server_link_s / (total - servers))
        if servers == 1:
            return f"its link is the bottleneck from {plural(workers, 'worker')} on"
        return "the servers' links are the bottleneck"
    if found.bounded_by == NETWORK:
        return "the workers' links are the bottleneck"
    training = total - servers
    if duel["equal"] != "workers" and servers and duel["ratio"] <= 1.1 * total / training:
        return f"only {training} of the {total} {duel['unit']} train{'s' * (training == 1)}"
    return ""


def saturated_from(compute_s: float, link_s_per_worker: float) -> int:
    """The smallest number of workers whose payloads take a server's link longer than computing takes."""
    return int(compute_s // link_s_per_worker) + 1


def one_server(summary: pd.DataFrame, bounds: Bounds) -> str:
    """Where a single dedicated server stops scaling; `summary` holds the ok cells of one setting."""
    alone = summary[(summary["num_servers"] == 1) & (summary["placement"] == "dedicated")]
    alone = alone[alone["consistency"] == "bsp"].drop_duplicates("num_workers").sort_values("num_workers")
    if len(alone) < 2:
        return ""
    last, rows = alone.iloc[-1], alone.to_dict("records")
    rates = [f"{number(row['tokens_per_s'])} with {plural(row['num_workers'], 'worker')}" for row in rows]
    text = f"Measured, in tokens/s: {listed(rates)}"
    if last["cell"] not in bounds:
        return f"{text}."
    found = bounds.of(last["cell"])
    each_s = found.server_link_s / last["num_workers"]
    most = bounds.tokens_of_one_worker(last["cell"]) / each_s
    workers = plural(saturated_from(found.compute_s, each_s), "worker")
    return (
        f"From {workers} on its link is the bottleneck: every worker's payload takes it {scaled(each_s, SECONDS)} a "
        f"step, computing takes {scaled(found.compute_s, SECONDS)}. However many workers follow, {number(most)} "
        f"tokens/s is the limit. {text} ({100 * last['tokens_per_s'] / most:.0f} % of the limit)."
    )


def worth(duels: Sequence[Row], rows: Cells) -> str:
    """Whether distributing pays: time to a loss where one was reached, else speed, relative to one process."""
    known = {cell: name for cell, name in arms(duels).items() if pd.notna(rows[cell]["speedup"])}
    if not known:
        return "Not known: no single process ran the same work."
    gains = [rows[cell]["speedup"] for cell in known]
    each = [f"{name} {times(rows[cell], 'speedup')}" for cell, name in known.items()]
    base = str(rows[next(iter(known))]["baseline"])
    text = f"Speed relative to {'one process' if base == LOCAL.name else base}: {listed(each)}, at {at(duels)}."
    target, seconds = to_loss(duels, rows)
    alone, others = seconds.get(ALONE, np.nan), [each for name, each in seconds.items() if name != ALONE]
    if others and pd.notna(alone):
        gains = [alone / each for each in others]
        reached = listed([f"{name} {number(each)}" for name, each in seconds.items()])
        text = f"Seconds until training loss {number(target)}, warm-up included: {reached}. {text}"
    best = max(gains)
    return f"{'Yes' if best >= PAYS_FROM else 'No' if best <= 1 else 'Hardly'}. {text}"


def times(row: Row, name: str) -> str:
    """'6.47× (6.41–6.53)'."""
    value, *rest = interval(row, name).split(" ", 1)
    return " ".join([f"{value}×", *rest])


def to_loss(duels: Sequence[Row], rows: Cells) -> tuple[float, dict[str, float]]:
    """The target loss, and the seconds until it of one process with the same batch and of each topology."""
    target, work = rows[duels[0]["ring"]]["target_loss"], ("batch_size", "precision")
    seconds = {name: rows[cell]["time_to_loss_s"] for cell, name in arms(duels).items()}
    for row in rows.values():
        same = row["target_loss"] == target and all(row[field] == duels[0][field] for field in work)
        if row["strategy"] == LOCAL.name and same:
            seconds = {ALONE: row["time_to_loss_s"], **seconds}
    return target, {name: float(each) for name, each in seconds.items() if pd.notna(each)}


def cpu(duels: Sequence[Row], rows: Cells, steps: Mapping[str, int]) -> str:
    """CPU seconds of a worker, and of a server, per step; `steps` counts warm-up."""
    parts = []
    for cell, name in arms(duels).items():
        of_worker, of_server = (rows[cell][f"{role}_cpu_s"] / steps[cell] for role in ("worker", "server"))
        if pd.notna(of_worker):
            served = f" (a server {scaled(of_server, SECONDS)})" if pd.notna(of_server) else ""
            parts.append(f"{name} {scaled(of_worker, SECONDS)}{served}")
    return f"Per worker and step, at {at(duels)}: {listed(parts)}." if parts else ""


def turns(duels: Sequence[Row], bounds: Bounds, ratio_now: float, margin: float) -> str:
    """At which link rate a verdict would change, by the limits alone; only where they agree with the verdict now."""
    parts = [turn(duel, bounds, ratio_now, margin) for duel in duels]
    said = " ".join(part for part in parts if part)
    return f"{said} This follows from the limits of links and computing alone." if said else ""


def turn(duel: Row, bounds: Bounds, ratio_now: float, margin: float) -> str:
    """At which link rate one decided comparison would change its verdict; blank if the limits do not explain it."""
    verdict = str(duel["verdict"])
    if verdict not in ("ring", "server") or not {duel["ring"], duel["server"]} <= set(bounds):
        return ""
    now = modelled(duel, bounds, 1.0)
    if word_of(now, margin) != verdict or not 1 / AGREES <= now / duel["ratio"] <= AGREES:
        return ""  # something else than links and computing decides
    name, ring, where = arm_name(duel), duel["ring_name"], sizes([duel])
    ahead, behind = (ring, name) if verdict == "ring" else (name, ring)
    for factors in (1 / FACTORS, FACTORS):
        for factor in factors:
            word = word_of(modelled(duel, bounds, factor), margin)
            if word != verdict:
                what = "are equivalent" if word == EQUIVALENT else "change places"
                speed = f"{number(max(factor, 1 / factor))}× as {'fast' if factor > 1 else 'slow'}"
                at = f" (M/(B·T) {number(ratio_now / factor)})" if pd.notna(ratio_now) else ""
                return f"{capital(ahead)} and {behind} {what} at {where} where links are {speed}{at}."
    ends = [max(r, 1 / r) for r in (modelled(duel, bounds, f) for f in (1 / FACTORS[-1], FACTORS[-1]))]
    return (
        f"No link rate changes the order of {ahead} and {behind} at {where}: {ahead} would be {faster_by(ends[0])} "
        f"faster if links alone set the pace, and {faster_by(ends[1])} faster if links took no time."
    )


def modelled(duel: Row, bounds: Bounds, factor: float) -> float:
    """Ring ÷ servers by the limits, with links `factor` times as fast."""
    return bounds.tokens_per_s(duel["ring"], factor) / bounds.tokens_per_s(duel["server"], factor)


def word_of(ratio: float, margin: float) -> str:
    """The verdict of a ratio that is known exactly."""
    return "ring" if ratio > 1 + margin else "server" if ratio < 1 / (1 + margin) else EQUIVALENT


def conditions(duels: pd.DataFrame, rows: Cells, bounds: Bounds) -> str:
    """Model, payload, link, M/(B·T), computing, sizes and launches of one setting."""
    compared = [cell for cell in rows if cell in set(duels["ring"]) | set(duels["server"])]
    row, config = rows[compared[0]], bounds.configs[compared[0]]
    ratio = row["communication_compute_ratio"]
    words = [
        f"{config.model}, {config.gpt.num_parameters:,} parameters, M = {scaled(config.wire_bytes, BYTES)} a copy",
        f"{config.precision}, {config.batch_size} sequences of {config.gpt.block_size} tokens per worker",
        f"link {config.link}" if config.link else NO_LINK_WORDS[str(duels["place"].iloc[0])],
        f"M/(B·T) {number(ratio)}" if pd.notna(ratio) else "M/(B·T) not known",
        computing_of(compared[0], row, bounds),
        f"{listed([str(n) for n in sorted({rows[cell]['world_size'] for cell in compared})])} {duels['unit'].iloc[0]}",
        launches_of([rows[cell] for cell in compared]),
    ]
    return "; ".join(words) + "."


def launches_of(rows: Sequence[Row]) -> str:
    """'30 ok launches and 3 disturbed ones': those of cells that have no other."""
    disturbed = sum(int(row["n"]) for row in rows if row.get("only_disturbed", False))
    ok = sum(int(row["n"]) for row in rows) - disturbed
    return plural(ok, "ok launch", "es") + (f" and {plural(disturbed, 'disturbed one')}" if disturbed else "")


def computing_of(cell: str, row: Row, bounds: Bounds) -> str:
    """'emulated computing, 300 ms a step'."""
    config = bounds.configs[cell]
    if config.compute == "none":
        return "no computing"
    return f"{config.compute} computing, {scaled(durations_of(config, row).compute_s, SECONDS)} a step"


NO_LINK_WORDS = {"one machine": "one machine, no link", "network": "link not known", "emulated nodes": "link not known"}
