"""The work of every peer: psring's GPT on psring's batches, or gradients of zeros in its shapes."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.config import RunConfig
from bench.rank.data import load
from bench.rank.model import GPT
from bench.rank.train import build_model

CPU = torch.device("cpu")
LEARNING_RATE, MOMENTUM = 1e-3, 0.9
Gradients = Callable[[GPT, int], list[Tensor]]


def arguments() -> argparse.Namespace:
    """Parse the flags that benchmark_peers.py gives a peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True, help="RunConfig as JSON")
    parser.add_argument("--tcp", action="store_true", help="no shared memory between the processes")
    return parser.parse_args()


def model(config: RunConfig) -> GPT:
    """Return the GPT with the initial weights of the config's seed."""
    torch.set_num_threads(config.num_threads)
    return build_model(config, CPU)


def gradients(config: RunConfig, worker: int) -> Gradients:
    """Return a function that computes a step's gradients by forward and backward, or returns zeros (compute: none)."""
    if config.compute == "none":
        zeros = [torch.zeros(p.shape) for p in model(config).parameters()]
        return lambda _, __: zeros
    corpus = load(config)

    def backward(gpt: GPT, step: int) -> list[Tensor]:
        gpt.zero_grad()
        gpt(*corpus.batch(config, worker, step)).backward()
        return [p.grad for p in gpt.parameters() if p.grad is not None]

    return backward


class Stopwatch:
    """Times steps from one end to the next."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._ends = [time.perf_counter()]

    def step_ended(self) -> None:
        """Record the end of a step."""
        self._ends.append(time.perf_counter())

    def report(self) -> None:
        """Print the seconds of every step after warm-up as one line of JSON."""
        steps = [after - before for before, after in zip(self._ends, self._ends[1:], strict=False)]
        print("STEPS", json.dumps(steps[self._config.warmup_steps :]), flush=True)
