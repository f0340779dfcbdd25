"""What every peer trains: psring's GPT on psring's batches, or its gradients' shapes without any arithmetic."""

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
    """What benchmark_peers.py tells a peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True, help="RunConfig as JSON")
    parser.add_argument("--tcp", action="store_true", help="no shared memory between the processes")
    return parser.parse_args()


def model(config: RunConfig) -> GPT:
    """The GPT with the initial weights of the config's seed."""
    torch.set_num_threads(config.num_threads)
    return build_model(config, CPU)


def gradients(config: RunConfig, worker: int) -> Gradients:
    """Return what makes one step's gradients: a forward and backward pass, or the same zeros every time."""
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
    """Times steps from one end to the next, and prints the measured ones."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._ends = [time.perf_counter()]

    def step_ended(self) -> None:
        """Note the end of a step."""
        self._ends.append(time.perf_counter())

    def report(self) -> None:
        """Print the measured steps, seconds each, as one line of JSON."""
        steps = [after - before for before, after in zip(self._ends, self._ends[1:], strict=False)]
        print("STEPS", json.dumps(steps[self._config.warmup_steps :]), flush=True)
