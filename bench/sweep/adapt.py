"""Slow an emulated cluster down where this machine cannot move its bytes: links, delay and compute by one factor.

What decides between topologies is M/(B·T), the time to send one payload over the time of a step's compute: it stays the
same. One factor holds for all cells of a sweep, and for a folder whenever it is resumed.
"""

from __future__ import annotations

import math

from bench import environment
from bench.links import parse_links
from bench.nodes.probe import socket_cpu_s_per_byte
from bench.sweep.file import Sweep

# Share of the cores that bare sockets may need for the links' bytes. Ranks need some 20 times as much (Python, MPI,
# sums), so that they then use all cores while links are full. 8 nodes at 200 Mbit/s have a share of 0.06 on the 2 cores
# of the committed studies, and of 0.09 on 2 cores a third slower, where steps still took 1.05 to 1.06 of their bound.
MAX_SOCKET_SHARE = 0.09
STEP = 0.25  # the factor is rounded up to a multiple


def adapted(sweep: Sweep, where: str) -> Sweep:
    """Return the sweep with its slowdown, decided now unless it is known or no cell has emulated links."""
    if sweep.slowdown is not None:
        return sweep
    cells = [cell for cell in sweep.runs(where) if cell.link]
    rates = [sum(parse_links(cell.link or "", cell.world_size, cell.num_servers)) for cell in cells]
    if not rates:
        return sweep
    return sweep.model_copy(update={"slowdown": factor(max(rates), socket_cpu_s_per_byte(), environment.cores())})


def factor(bits_per_s: float, cpu_s_per_byte: float, cores: int) -> float:
    """Return by what factor links must be slower: their rates added up, a byte's CPU seconds in sockets, cores."""
    share = bits_per_s / 8 * cpu_s_per_byte / cores
    return max(1.0, math.ceil(share / MAX_SOCKET_SHARE / STEP) * STEP) if share > MAX_SOCKET_SHARE else 1.0


def describe(sweep: Sweep) -> list[str]:
    """Return a line that says how much slower the emulated cells are than asked for; none if they are not."""
    if not sweep.slowdown or sweep.slowdown == 1:
        return []
    return [
        f"slowdown {sweep.slowdown:g}: this machine is too slow for these links; in all emulated cells links are "
        "slower and compute is longer by this factor, which leaves M/(B·T) as it was "
        "(slowdown: 1 in the sweep file runs them as asked)"
    ]
