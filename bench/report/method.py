"""The method section of a report: how its numbers and verdicts are made."""

from __future__ import annotations

from bench import intervals
from bench.report.verdicts import MIN_PAIRS


def method(margin: float, slowdown: float = 1.0) -> list[str]:
    """The paragraphs; `margin` is the margin of practical equivalence of the verdicts, `slowdown` the runs' largest."""
    slowed = (
        f"This machine was too slow for the links that were asked for: links of emulated nodes were {slowdown:g} times "
        "slower, their delay and emulated compute as many times longer, in all cells alike (column slowdown). M/(B·T) "
        "is as it was asked for; tokens per second are those of the slower cluster."
    )
    return [
        *[slowed] * (slowdown > 1),
        "Every launch is a fresh set of processes. Warm-up steps are stored, flagged and not counted.",
        "A step lasts as long as on its slowest worker; the rate is the work of all workers over their common time. "
        "Each phase is read from a monotonic clock after waiting for the device.",
        "The launch is the sample, because steps of one launch are correlated. Numbers are medians over launches; "
        "brackets are the exact interval of the sign test, interpolated between order statistics (Hettmansperger and "
        "Sheather, 1986), which covers 95 % from 6 launches on for any distribution. With fewer launches it is the "
        f"range, which covers {coverages()}; a single launch has no interval.",
        "Speedup and efficiency are ratios to a baseline that their table names, with pairs and intervals as in "
        "comparisons; where no repeat is common, the ratio is that of unpaired launches with Welch's interval.",
        "Two cells are compared in pairs of launches of the same repeat, so that drift between repeats cancels. The "
        f"ratio is the geometric mean over pairs; from {MIN_PAIRS} pairs on, brackets are the 95 % t interval of the "
        "mean log ratio. With 2 pairs they are the range.",
        f"The margin of practical equivalence is {100 * margin:g} %. One cell is faster if the whole interval lies "
        "beyond the margin, two are equivalent if the whole interval lies within it, anything else is undecided. p is "
        "the two-sided p-value of that verdict after Holm's correction for all comparisons of the table; a verdict "
        f"needs p ≤ 0.05, so the chance of any false verdict in a table is at most 5 %. Fewer than {MIN_PAIRS} pairs "
        "give no verdict.",
        "A ring is compared with every arrangement of servers, at equal nodes (ranks, if a node has several) and, with "
        "dedicated servers, at equal workers. The ring is Horovod's if it ran, else that on mpi4py; of several of its "
        "settings the fastest. Asynchronous servers (asp, ssp) are left out: they learn less from a token.",
        "A launch is rejected only for what its strategy cannot cause: other processes on the cores, emulated links "
        "below their rate before the run, lost or uncounted packets. Rejected launches are replaced within a bound, "
        "counted, and in no median. Each verdict is also given with them; one that changes is fragile. Where the "
        "accepted launches are too few for a verdict, rejected ones are included and the disturbance of the more "
        "disturbed cell is added to the margin: by what others may have slowed its launches at most, as the geometric "
        "mean over repeats. On emulated nodes that is no more than what a step took above the shortest possible.",
        "Cells on a network, on emulated nodes and on one machine are never joined by a line or a ratio.",
        "The equivalence error of a cell is the maximum over its launches.",
    ]


def coverages() -> str:
    """'50 % with 2 launches, 75 % with 3, …': the coverage of the range of few launches."""
    return ", ".join(f"{100 * intervals.confidence(n):.4g} % with {n}" for n in range(2, 6))
