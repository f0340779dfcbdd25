"""Comparisons in words: which topology to use, how much faster it is, and at which sizes.

A comparison is a row of `duels.duels`. A name says what ran: "one dedicated server", "4 workers + 4 servers",
"Horovod's ring".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from bench.report.tables import Row, interval, number
from bench.report.verdicts import EQUIVALENT, MIN_PAIRS, NO_VERDICT, UNDECIDED

RING, SERVER = "ring", "server"  # verdicts: which one is faster
OPEN = (UNDECIDED, NO_VERDICT)
TIMES_FROM = 1.5  # ratios below are written in percent
MAX_SLOWER = 2  # kinds of servers in the headline that are not to be used
Reason = Callable[[Row], str]


class Choice(NamedTuple):
    """What to use at one size: names, and whether one of them is faster, all are equivalent, or that is open."""

    names: tuple[str, ...]
    verdict: str  # RING (alone), SERVER (alone), EQUIVALENT, or OPEN
    size: int
    duels: list[Row]  # with the named servers
    slower: list[Row]  # the other servers


def headline(duels: pd.DataFrame, margin: float, reason: Reason) -> list[str]:
    """What to use at each size, what is slower and why, and what more nodes would buy; of one setting."""
    by_workers = duels["equal"] == "workers"
    equal = duels if by_workers.all() else duels[~by_workers]  # equal nodes, if there are any
    choices = [choice(list(found.to_dict("records")), margin) for _, found in equal.groupby("size")]
    alike: dict[object, list[Choice]] = {}
    for one in reversed(choices):
        alike.setdefault((one.names, one.verdict), []).insert(0, one)
    said = [advice(found, margin) for found in alike.values()]
    said += [slower(duel, reason) for duel in choices[-1].slower[:MAX_SLOWER]]
    extra = duels[by_workers & (duels["verdict"] == SERVER)].sort_values("size")
    return said + [bought(duel) for duel in extra.tail(0 if by_workers.all() else 1).to_dict("records")]


def choice(duels: list[Row], margin: float) -> Choice:
    """What to use at one size: the fastest servers if any are faster than the ring, else the ring and its equals."""
    ring, size = str(duels[0]["ring_name"]), int(duels[0]["size"])
    faster = sorted((duel for duel in duels if duel["verdict"] == SERVER), key=lambda duel: float(duel["ratio"]))
    if faster:
        others = [duel for duel in duels if duel is not faster[0]]
        return Choice((arm_name(faster[0]),), SERVER, size, faster[:1], others)
    equal = [duel for duel in duels if duel["verdict"] == EQUIVALENT]
    undecided = [duel for duel in duels if duel["verdict"] in OPEN and may_be_equal(duel, margin)]
    used = [*equal, *undecided]
    others = [duel for duel in duels if not any(duel is one for one in used)]
    verdict = UNDECIDED if undecided else EQUIVALENT if equal else RING
    if not used and all(duel["verdict"] in OPEN for duel in others):
        verdict = NO_VERDICT
    return Choice((ring, *map(arm_name, used)), verdict, size, used, others)


def may_be_equal(duel: Row, margin: float) -> bool:
    """Whether an open comparison leaves it possible that the servers are as fast as the ring."""
    return bool((duel["ratio_low"] if duel["verdict"] == UNDECIDED else duel["ratio"]) <= 1 + margin)


def advice(choices: list[Choice], margin: float) -> str:
    """What to use at several sizes with the same names and verdict."""
    duels = [duel for one in choices for duel in one.duels]
    equal = str((duels or choices[0].slower)[0]["equal"])
    where = f"At {listed([str(one.size) for one in choices])} {equal}"
    names, verdict = " or ".join(choices[0].names), choices[0].verdict
    if verdict == SERVER:
        each = listed([f"{amount(duel)} at {duel['size']}" if len(duels) > 1 else amount(duel) for duel in duels])
        than = f"{duels[0]['ring_name']}, by {each}{weakness(duels)}"
        return f"{where} use {names}: {'it trains' if verb(names) == 'is' else 'they train'} faster than {than}."
    if verdict == EQUIVALENT:
        return f"{where} use {names}: they are equivalent (within {100 * margin:g} %){weakness(duels)}."
    if verdict == UNDECIDED:
        return f"{where} use {names}: which is faster is not decided ({evidence(duels)})."
    if verdict == NO_VERDICT:
        few = few_pairs([duel for one in choices for duel in one.slower])
        return f"{where} {names} is ahead so far, without a verdict{f' ({few})' if few else ''}."
    return f"{where} use {names}."


def evidence(duels: Sequence[Row]) -> str:
    """'ring ÷ servers 0.991 (0.979–1.003) and 1.01 (1.00–1.02); 2 of at least 3 pairs of launches at 8 nodes'."""
    few = few_pairs(duels)
    return f"ring ÷ servers {listed([interval(duel, 'ratio') for duel in duels])}{'; ' if few else ''}{few}"


def few_pairs(duels: Sequence[Row]) -> str:
    """'1 or 2 of at least 3 pairs of launches at 2 and 8 nodes'; blank if there are enough everywhere."""
    few = [duel for duel in duels if duel["n"] < MIN_PAIRS]
    if not few:
        return ""
    counts = " or ".join(str(n) for n in sorted({int(duel["n"]) for duel in few}))
    where = listed([str(size) for size in sorted({int(duel["size"]) for duel in few})])
    return f"{counts} of at least {MIN_PAIRS} pairs of launches at {where} {few[0]['equal']}"


def slower(duel: Row, reason: Reason) -> str:
    """How much slower (or not) these servers are than the ring, and why."""
    name = arm_name(duel)
    if duel["verdict"] == EQUIVALENT:
        return f"{capital(name)} and {duel['ring_name']} are equivalent at {sizes([duel])}."
    so_far = "so far " if duel["verdict"] in OPEN else ""
    word, why = ("slower", reason(duel)) if duel["ratio"] >= 1 else ("faster", "")
    than = f"{word} than {duel['ring_name']} at {sizes([duel])}{weakness([duel])}"
    return f"{capital(name)} {verb(name)} {so_far}{amount(duel)} {than}{': ' if why else ''}{why}."


def weakness(duels: Sequence[Row]) -> str:
    """' (oversubscribed: only the servers)': what weakens these comparisons; column `weakness`, if they have it."""
    found = dict.fromkeys(str(duel.get("weakness", "")) for duel in duels)
    text = "; ".join(each for each in found if each)
    return f" ({text})" if text else ""


def bought(duel: Row) -> str:
    """What dedicated servers beside as many workers gain, and the nodes that they take."""
    workers, total = duel["size"], duel["world_size"]
    than = f"{duel['ring_name']} of {workers}"
    return f"{capital(team_of(duel))} train {amount(duel)} faster than {than} but take {total} {duel['unit']}."


def counted(duels: pd.DataFrame) -> str:
    """'Colocated servers against Horovod's ring at equal nodes, …: slower in 3 of 4 settings (2 % to 1.6×), …'."""
    last = duels.loc[duels.groupby("setting", sort=False)["size"].idxmax()]
    total = plural(len(last), "setting")
    words = {RING: "slower", SERVER: "faster"}
    parts = []
    for verdict in (RING, SERVER, EQUIVALENT, UNDECIDED, NO_VERDICT):
        found = last[last["verdict"] == verdict].sort_values("ratio", ascending=verdict == RING).to_dict("records")
        if not found:
            continue
        if verdict in words:
            span = " to ".join(dict.fromkeys([amount(found[0]), amount(found[-1])]))
        else:
            ends = dict.fromkeys(number(one["ratio"]) for one in (found[-1], found[0]))
            few = f"fewer than {MIN_PAIRS} pairs of launches; " if verdict == NO_VERDICT else ""
            span = f"{few}ring ÷ servers {' to '.join(ends)}"
        parts.append(f"{words.get(verdict, verdict)} in {len(found)} of {total} ({span})")
    first = last.iloc[0]
    names = f"{capital(first['server_name'])} against {first['ring_name']}"
    weak = weakness(last.to_dict("records"))
    return f"{names} at equal {first['equal']}, each setting at its largest size: {', '.join(parts)}{weak}."


def sentences(duels: pd.DataFrame, margin: float) -> list[str]:
    """A sentence per verdict about each kind of servers in one setting; decided ones and equal nodes first."""
    groups = [found for _, found in duels.groupby(["server_name", "ring_name", "equal"], sort=False)]
    groups.sort(key=lambda found: (found["equal"].iloc[0] == "workers", -len(found)))
    said: dict[bool, list[str]] = {True: [], False: []}
    for group in groups:
        for verdict, found in group.sort_values("size").groupby("verdict", sort=False):
            said[verdict not in OPEN].append(sentence(str(verdict), found.to_dict("records"), margin))
    return said[True] + said[False]


def sentence(verdict: str, duels: Sequence[Row], margin: float) -> str:
    """One verdict about one kind of servers at one or several sizes."""
    servers, ring = str(duels[0]["server_name"]), str(duels[0]["ring_name"])
    servers = arm_name(duels[0]) if len(duels) == 1 else servers
    subject = capital(servers)
    if verdict == EQUIVALENT:
        return f"{subject} and {ring} are equivalent (within {100 * margin:g} %) at {sizes(duels)}."
    if verdict in (RING, SERVER):
        word = "slower" if verdict == RING else "faster"
        if len(duels) == 1:
            than = f"{word} than {ring} at {sizes(duels)}{weakness(duels)}"
            return f"{subject} {verb(servers)} {amount(duels[0])} {than}."
        each = listed([f"{amount(duel)} at {sizes([duel])}" for duel in duels])
        return f"{subject} {verb(servers)} {word} than {ring}: {each}{weakness(duels)}."
    why = f" (fewer than {MIN_PAIRS} pairs of launches)" if verdict == NO_VERDICT else ""
    ratios = listed([interval(duel, "ratio") for duel in duels])
    return f"{subject} against {ring} at {sizes(duels)}: {verdict}{why}, ring ÷ servers {ratios}{weakness(duels)}."


def arm_name(duel: Row) -> str:
    """The servers of a comparison: 'one dedicated server', 'colocated servers', '4 workers + 4 servers'."""
    several = duel["num_servers"] > 1 and str(duel["server_name"]).startswith(f"{duel['num_servers']} dedicated")
    return team_of(duel) + str(duel["server_name"]).partition("servers")[2] if several else str(duel["server_name"])


def team_of(duel: Row) -> str:
    """'4 workers + 4 servers'."""
    servers = int(duel["num_servers"])
    return f"{plural(int(duel['world_size']) - servers, 'worker')} + {plural(servers, 'server')}"


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
    return faster_by(max(duel["ratio"], 1 / duel["ratio"]))


def faster_by(ratio: float) -> str:
    """'3.56×', below TIMES_FROM '3.1 %'."""
    return f"{number(ratio)}×" if ratio >= TIMES_FROM else f"{100 * (ratio - 1):.1f} %"


def verb(name: str) -> str:
    """'is' for one server, 'are' for several."""
    return "is" if name.startswith("one ") else "are"


def listed(words: Sequence[str]) -> str:
    """'2, 4 and 8'."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def capital(text: str) -> str:
    """The text with its first letter as a capital."""
    return text[:1].upper() + text[1:]


def plural(count: int, word: str, ending: str = "s") -> str:
    """1 worker, 2 workers."""
    return f"{count} {word}{'' if count == 1 else ending}"
