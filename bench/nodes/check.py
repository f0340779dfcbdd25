"""Which clusters this machine can emulate: sizes and link rates at which a bare ring still meets its closed form."""

from __future__ import annotations

from collections.abc import Sequence

from bench.config import BadInput
from bench.links import parse_rate
from bench.nodes import cluster, layout
from bench.nodes.layout import Cluster
from bench.nodes.probe import ATTEMPTS, TOLERANCE, best_ratio, fork_ring


def parse_sizes(text: str) -> list[int]:
    """'2,4,8' -> [2, 4, 8]; BadInput for anything else."""
    if not all(part.isdigit() and int(part) >= 2 for part in text.split(",")):
        raise BadInput(f"--num-nodes: {text!r} is not a list of sizes from 2; write 2,4,8")
    return [int(part) for part in text.split(",")]


def print_capacity(sizes: Sequence[int], links: Sequence[str]) -> None:
    """Probe every size at rising rates; print the ratios, then the fastest link of each size within tolerance."""
    rates = sorted(links, key=parse_rate)
    print(f"ring over bare sockets: time / closed form, at most {1 + TOLERANCE:g} (best of {ATTEMPTS})")
    print("nodes  " + "  ".join(f"{rate:>8}" for rate in rates))
    fastest = {}
    for size in sizes:
        ratios = [_ratio(layout.make("check", size, rate)) for rate in rates]
        print(f"{size:>5}  " + "  ".join(f"{ratio:>8.3f}" for ratio in ratios), flush=True)
        within = [rate for rate, ratio in zip(rates, ratios, strict=True) if abs(ratio - 1) <= TOLERANCE]
        fastest[size] = within[-1] if within else "none of these"
    print("this machine can emulate: " + "; ".join(f"{size} nodes, {rate}" for size, rate in fastest.items()))


def _ratio(made: Cluster) -> float:
    with cluster.running(made):
        return best_ratio(lambda: fork_ring(made))
