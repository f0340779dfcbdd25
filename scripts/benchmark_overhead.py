"""Measure the overhead of psring's loop, ring and GPT against plain code that does the same.

    mpirun -n 2 --oversubscribe --bind-to none python scripts/benchmark_overhead.py [--steps 300] [--model gpt-micro]

Three pairs, interleaved step by step in one run, so that drift of the machine affects both sides alike: psring's
training step and a plain PyTorch loop over the same module; ring_allreduce and a plain Horovod loop; psring's GPT and
nn.TransformerEncoderLayer. Rank 0 alone runs the first and the third. The order within a pair alternates. Prints the
median over pairs of the ratio of step times, and its 95 % interval, which is too narrow if the steps of one launch are
correlated: repeat the command.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from functools import partial

from strategies.environment import mpi_environment

os.environ.update(mpi_environment(os.environ))

import horovod.torch as hvd
import torch
import torch.nn.functional as F
from mpi4py import MPI
from torch import nn

from bench.config import RunConfig
from bench.intervals import median_interval
from bench.rank.data import Corpus, load
from bench.rank.train import build_model, build_optimizer, train
from bench.shape import GPTShape
from strategies import create
from strategies.group import Group, MPIGroup, SingleGroup

CPU = torch.device("cpu")
WARMUP = 20
Step = Callable[[], object]


def psring_step(config: RunConfig, group: Group, corpus: Corpus) -> Step:
    """Return a function that runs one step of psring's loop."""
    model = build_model(config, CPU)
    strategy = create(config.strategy, group, config)
    module = strategy.prepare(model, build_optimizer(config, model))
    steps = train(config, module, strategy, corpus, CPU)
    return lambda: next(steps)


def plain_step(config: RunConfig, model: nn.Module, corpus: Corpus, worker: int = 0, ring: bool = False) -> Step:
    """Return a function that runs one step of a tutorial's loop, under Horovod if `ring`."""
    optimizer = build_optimizer(config, model)
    if ring:
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

    def steps() -> Iterator[float]:
        for step in range(config.total_steps):
            tokens, targets = corpus.batch(config, worker, step)
            loss = model(tokens, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item()

    return partial(next, steps())


class PlainGPT(nn.Module):
    """The same architecture from PyTorch's modules."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.block_size, shape.n_embd)
        layer = nn.TransformerEncoderLayer(
            shape.n_embd, shape.n_head, 4 * shape.n_embd, dropout=0.0, norm_first=True, batch_first=True,
            activation=partial(F.gelu, approximate="tanh"),
        )  # fmt: skip
        norm = nn.LayerNorm(shape.n_embd)
        self.blocks = nn.TransformerEncoder(layer, shape.n_layer, norm=norm, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(shape.block_size))

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        x = self.blocks(x, mask=self.mask, is_causal=True)
        return F.cross_entropy(F.linear(x, self.wte.weight).flatten(0, 1), targets.flatten())


def interleave(one: Step, other: Step, steps: int, barrier: Callable[[], None]) -> tuple[list[float], list[float]]:
    """Return both sides' step times, seconds, without warm-up; they run alternately and alternate who is first."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(WARMUP + steps):
        for side in (0, 1) if number % 2 else (1, 0):
            barrier()
            began = time.perf_counter()
            (one, other)[side]()
            if number >= WARMUP:
                times[side].append(time.perf_counter() - began)
    return times


def show(what: str, times: tuple[list[float], list[float]], target: float) -> None:
    """Print one pair's ratio, its interval and its target."""
    found = median_interval(one / other for one, other in zip(*times, strict=True))
    median = sorted(times[1])[len(times[1]) // 2] * 1e3
    verdict = "met" if found.value <= target else "MISSED"
    print(
        f"{what:58} {found.value:.4f} ({found.low:.4f}-{found.high:.4f}) of {median:.1f} ms, "
        f"n={len(times[0])}, at most {target}: {verdict}",
        flush=True,
    )


def main() -> None:
    """Measure and print the three pairs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model", default="gpt-micro")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    group = MPIGroup(MPI.COMM_WORLD)
    common = {"model": arguments.model, "block_size": 64, "steps": arguments.steps, "warmup_steps": WARMUP}
    if group.rank == 0:
        config = RunConfig.model_validate(common)
        corpus = load(config)
        pair = psring_step(config, SingleGroup(), corpus), plain_step(config, build_model(config, CPU), corpus)
        times = interleave(*pair, arguments.steps, lambda: None)
        show("local training step / plain PyTorch loop", times, 1.03)
        models = build_model(config, CPU), PlainGPT(config.gpt)
        sizes = [sum(p.numel() for p in model.parameters()) for model in models]
        assert sizes[0] == sizes[1], f"not the same architecture: {sizes}"
        pair = plain_step(config, models[0], corpus), plain_step(config, models[1], corpus)
        times = interleave(*pair, arguments.steps, lambda: None)
        show("GPT / nn.TransformerEncoderLayer, equal size", times, 1.0)
    group.barrier()
    config = RunConfig.model_validate({**common, "strategy": "ring_allreduce", "num_workers": group.size})
    corpus = load(config)
    first = psring_step(config, group, corpus)
    pair = first, plain_step(config, build_model(config, CPU), corpus, group.rank, ring=True)
    times = interleave(*pair, arguments.steps, group.barrier)
    slowest = [MPI.COMM_WORLD.allreduce(side, op=_elementwise_max) for side in times]
    if group.rank == 0:
        show(f"ring_allreduce, {group.size} workers / plain Horovod loop", (slowest[0], slowest[1]), 1.03)


def _elementwise_max(ours: list[float], theirs: list[float]) -> list[float]:
    return [max(pair) for pair in zip(ours, theirs, strict=True)]


if __name__ == "__main__":
    main()
