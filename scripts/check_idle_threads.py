"""Whether sleeping layers cost a strategy nothing for threads that only wait: `local` against itself with such threads.

    python scripts/check_idle_threads.py [--pairs 10] [--threads 2]

The threads wait as the parameter server's and the ring's do: they look for messages, here none, and sleep 0.05 to
0.4 ms.
Both run in this process, by turns. Prints the ratio of their step times and its 95 % interval; goal: within 0.2 %.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bench.config import RunConfig, make_config
from bench.rank.asleep import EmulatedGPT
from bench.rank.build import build_training, load_data
from bench.rank.train import train
from bench.report.verdicts import paired
from strategies.group import SingleGroup
from strategies.local import Local
from strategies.parameter_server.progress import LONGEST_NAP_S, SHORTEST_NAP_S

GOAL = 0.002
CONFIG: dict[str, object] = {
    "strategy": "local", "model": "gpt-micro", "compute": "emulated", "emulated_forward_s": 0.1,
    "emulated_backward_s": 0.2, "warmup_steps": 1, "steps": 5,
}  # fmt: skip


@contextmanager
def waiting(count: int) -> Iterator[None]:
    """Run threads that wait for messages that never come."""
    ended = threading.Event()

    def wait() -> None:
        nap_s = SHORTEST_NAP_S
        while not ended.wait(nap_s):
            nap_s = min(2 * nap_s, LONGEST_NAP_S)

    threads = [threading.Thread(target=wait) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def seconds(config: RunConfig, threads: int) -> tuple[float, float]:
    """Return the mean seconds of a measured step, and the seconds by which the layers' ends were late on average."""
    strategy, device = Local(SingleGroup(), config), torch.device("cpu")
    model, optimizer = build_training(config, strategy, device)
    module = strategy.prepare(model, optimizer)
    with waiting(threads):
        steps = [step.step_s for step in train(config, module, strategy, load_data(config), device) if not step.warmup]
    assert isinstance(model, EmulatedGPT)
    late = model.schedule.overshoots_s
    return sum(steps) / len(steps), sum(late) / len(late)


def main() -> None:
    """Parse the flags, measure by turns, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    config, began = make_config(CONFIG, "check_idle_threads"), time.monotonic()
    pairs = [(seconds(config, arguments.threads), seconds(config, 0)) for _ in range(arguments.pairs)]
    sides = [{number: pair[side][0] for number, pair in enumerate(pairs)} for side in (0, 1)]
    found = paired(*sides).interval
    late_ms = [1e3 * sum(pair[side][1] for pair in pairs) / len(pairs) for side in (0, 1)]
    verdict = "met" if abs(found.value - 1) <= GOAL else "MISSED"
    interval = f"{found.value:.5f} ({found.low:.5f}-{found.high:.5f})"
    print(f"step with {arguments.threads} idle threads / without: {interval}, at most {GOAL:.1%} from 1: {verdict}")
    print(f"layers ended late by {late_ms[0]:.3f} ms with them, {late_ms[1]:.3f} ms without, on average")
    print(f"{len(pairs)} pairs of {config.steps} steps in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
