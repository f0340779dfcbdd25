"""Parse link rates and delays."""

from __future__ import annotations

import math
import re

from bench.config import BadInput, shorten

UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
MAX_RATE, MAX_DELAY_S = 10**13, 10.0
DELAY_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_rate(text: str) -> int:
    """'200mbit' -> 200000000 bits per second; BadInput for anything else, and for zero."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(kbit|mbit|gbit)", text.strip())
    rate = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if not 1000 <= rate <= MAX_RATE:
        raise BadInput(f"link: {shorten(text)} is not a rate from 1kbit to 10000gbit; write 200mbit, 1gbit or 500kbit")
    return rate


def slower(text: str, factor: float) -> str:
    """'200mbit' at 1.25 -> '160mbit'; every rate of 'n0=1gbit,*=50mbit' likewise. BadInput for anything else."""
    parts = (part.strip().rpartition("=") for part in text.split(","))
    return ",".join(f"{name}{equals}{_kbit(parse_rate(rate) / factor)}" for name, equals, rate in parts)


def _kbit(rate: float) -> str:
    """160000000 -> '160mbit', 133333333 -> '133333kbit'."""
    kbit = max(1, round(rate / 1e3))
    return f"{kbit}kbit" if kbit % 1000 else f"{kbit // 1000}mbit"


def parse_delay(text: str) -> float:
    """'2ms' -> 0.002 seconds; BadInput for anything else."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(us|ms|s)", text.strip())
    delay_s = float(found[1]) * DELAY_UNITS[found[2]] if found else math.inf
    if delay_s > MAX_DELAY_S:
        raise BadInput(f"delay: {shorten(text)} is not a time up to {MAX_DELAY_S:g} s; write 500us, 2ms or 1s")
    return delay_s


def parse_links(text: str, num_nodes: int, num_servers: int = 0) -> tuple[int, ...]:
    """'200mbit' or 'n0=1gbit,server=500mbit,*=50mbit' -> bits per second of each node's link.

    A node's own name has precedence over `server` (the last `num_servers` nodes), and that over `*` (all others).
    BadInput for anything else.
    """
    if "=" not in text:
        return (parse_rate(text),) * num_nodes
    given = dict(part.strip().partition("=")[::2] for part in text.split(","))
    nodes = [f"n{i}" for i in range(num_nodes)]
    servers = nodes[num_nodes - num_servers :]
    unknown = [name for name in given if name not in (*nodes, "server", "*")]
    if unknown:
        raise BadInput(
            f"link: there is no node {unknown[0]!r}; nodes are {nodes[0]} to {nodes[-1]}, server, and * for all others"
        )
    rates = []
    for node in nodes:
        names = [node, "server", "*"] if node in servers else [node, "*"]
        rate = next((given[name] for name in names if name in given), None)
        if rate is None:
            raise BadInput(f"link: no rate for {node}; add *=RATE for all others")
        rates.append(parse_rate(rate))
    return tuple(rates)
