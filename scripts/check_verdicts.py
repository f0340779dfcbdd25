"""Whether verdicts keep their promises on real launches: two equal arms, and arms slowed by 5 % and by 1 %.

    python scripts/check_verdicts.py --out DIR [--sweeps 20] [--repeats 6] [--margin 2%]

Every sweep has four cells on the same ranks: a ring of two workers on this machine that sleep instead of computing, the
same once more under another name, and two whose forward pass is longer by 5 % and by 1 % of a step. They are launched,
recorded, paired and judged as every sweep and report does it. Expected: the equal arms are called faster in at most 5 %
of the sweeps, 5 % slower is called in at least 90 %, and 1 % slower, which is within the margin, never.
With the same DIR again only what is missing is run. 20 sweeps of 6 repeats take about 9 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import records
from bench.config import BadInput
from bench.report.cells import judged
from bench.report.duels import Rejections
from bench.report.verdicts import ABOVE, BELOW, EQUIVALENT, MARGIN, Ratio, judge, share_of
from bench.sweep.file import Sweep
from bench.sweep.run import run_sweep

FORWARD_S, BACKWARD_S = 0.03, 0.06
SLOWER = {"equal": 0.0, "5 % slower": 0.05, "1 % slower": 0.01}  # beside the first arm
COMMON: dict[str, object] = {
    "strategy": "mpi_ring", "num_workers": 2, "model": "gpt-nano", "compute": "emulated", "eval_batches": 0,
    "emulated_forward_s": FORWARD_S, "emulated_backward_s": BACKWARD_S, "emulated_optimizer_s": 0.0,
    "warmup_steps": 1, "steps": 6,
}  # fmt: skip


def make_sweep(repeats: int) -> Sweep:
    """Return a sweep whose first cell is the arm that the others are compared with."""
    # patience_s changes nothing on this machine itself: it only gives equal arms different names.
    arms = [
        {"emulated_forward_s": FORWARD_S + share * (FORWARD_S + BACKWARD_S), "patience_s": 21.0 + number}
        for number, share in enumerate(SLOWER.values())
    ]
    return Sweep.model_validate({"defaults": COMMON, "grid": [{"patience_s": 20.0}, *arms], "repeats": repeats})


def verdicts_of(sweep: Sweep, folder: Path, margin: float) -> tuple[list[Ratio], list[str]]:
    """Return how much faster the first arm was than each other one, and the verdicts about it."""
    first, *others = [config.digest() for config in sweep.runs("check_verdicts")]
    rejections = Rejections(judged(records.frame(records.read(folder))))
    ratios = [rejections.compare(first, other)[0] for other in others]
    return ratios, [verdict.word for verdict in judge(ratios, margin)]


def show(ratios: Sequence[Sequence[Ratio]], words: Sequence[Sequence[str]], rejected: int) -> None:
    """Print a line per arm: how often it was called what, and the ratios found."""
    expected = ("faster or slower in at most 5 %", "faster in at least 90 %", "faster or slower never")
    for place, (name, wanted) in enumerate(zip(SLOWER, expected, strict=True)):
        found = Counter(of_sweep[place] for of_sweep in words)
        values = sorted(of_sweep[place].interval.value for of_sweep in ratios)
        counts = {"faster": found[ABOVE], "slower": found[BELOW], "equivalent": found[EQUIVALENT]}
        counts["undecided"] = len(words) - sum(counts.values())
        called = ", ".join(f"{word} {count}" for word, count in counts.items())
        print(f"{name:10}  the first arm in {len(words)} sweeps: {called}; ratio {values[0]:.4f} to {values[-1]:.4f}")
        print(f"{'':10}  expected: {wanted}")
    print(
        f"{rejected} launches of cells were rejected by the guard; those that could not be replaced count with the rest"
    )


def main() -> None:
    """Parse the flags, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder with a results folder per sweep")
    parser.add_argument("--sweeps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--margin", default=str(MARGIN))
    arguments = parser.parse_args()
    ratios, words, rejected = [], [], 0
    sweep = make_sweep(arguments.repeats)
    try:
        margin = share_of(arguments.margin, "--margin")
        for number in range(arguments.sweeps):
            folder = arguments.out / f"sweep-{number:02d}"
            run_sweep(sweep, "check_verdicts", folder, Console(quiet=True))
            found = verdicts_of(sweep, folder, margin)
            ratios.append(found[0])
            words.append(found[1])
            rejected += sum(record.is_rejected for record in records.read(folder))
            each = ", ".join(f"{name} {word}" for name, word in zip(SLOWER, found[1], strict=True))
            print(f"sweep {number}: {each}", flush=True)
    except BadInput as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on")
    if words:
        show(ratios, words, rejected)


if __name__ == "__main__":
    main()
