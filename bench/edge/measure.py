"""One launch: a process of its own that loads a variant, and either evaluates it or times it.

Launches are forked from a process that has imported the libraries and computed nothing (`preload`): the memory of one
is its model's, and a launch takes no seconds of imports.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import processes
from bench.config import BadInput
from bench.edge.runner import Runner, load
from bench.rank.numbers import peak_memory_bytes, reset_peak_memory

# Tensors would travel between processes as shared memory, which is gone with the process that made it.
Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

DEADLINE_S = 300.0
PREFILLS = 10
MAX_GENERATED = 64
LARGE_BATCH = 8
MIN_TOKENS = 96  # timed at batch 1


class Lengths(NamedTuple):
    """Tokens of the prompt, tokens generated after it, and how often."""

    prompt: int
    generated: int
    passes: int


def lengths(block_size: int) -> Lengths:
    """Return how much of a context is read and how much generated: half each, at most 64 generated tokens."""
    prompt = max(1, block_size // 2)
    generated = max(1, min(block_size - prompt, MAX_GENERATED))
    return Lengths(prompt, generated, -(-MIN_TOKENS // generated))


@torch.no_grad()
def evaluate(path: Path, num_threads: int, batches: Sequence[tuple[Tokens, Tokens]]) -> tuple[list[float], Logits]:
    """Return the loss of every held-out batch, nats per token, and the logits of the first."""
    torch.set_num_threads(num_threads)
    runner = load(path, num_threads)
    found = [runner.logits(torch.from_numpy(tokens)) for tokens, _ in batches]
    losses = [float(F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten()))
              for logits, (_, targets) in zip(found, batches, strict=True)]  # fmt: skip
    return losses, found[0].numpy()


@torch.no_grad()
def time_variant(path: Path, num_threads: int, prompts: Tokens) -> dict[str, float | int]:
    """Return the columns of a Launch; `prompts` is (8, block_size), of which the first half is read."""
    torch.set_num_threads(num_threads)
    reset_peak_memory()
    before, begin = psutil.Process().memory_info().rss, time.perf_counter()
    runner = load(path, num_threads)
    load_s, how = time.perf_counter() - begin, lengths(prompts.shape[1])
    eight = torch.from_numpy(prompts[:, : how.prompt])
    one = eight[:1]
    _generate(runner, one, how)  # warm-up
    prefills = [_prefill(runner, one) for _ in range(PREFILLS)]
    tokens = [seconds for _ in range(how.passes) for seconds in _generate(runner, one, how)]
    _generate(runner, eight, how)
    many = [seconds for _ in range(how.passes) for seconds in _generate(runner, eight, how)]
    middle, late = torch.tensor(tokens, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95], dtype=torch.float64))
    return {
        "load_s": load_s,
        "prefill_s": float(torch.tensor(prefills, dtype=torch.float64).quantile(0.5)),
        "token_s_p50": float(middle),
        "token_s_p95": float(late),
        "tokens_per_s": len(tokens) / sum(tokens),
        "tokens_per_s_batch_8": len(many) * LARGE_BATCH / sum(many),
        "peak_memory_bytes": max(0, peak_memory_bytes() - before),
    }


def _prefill(runner: Runner, prompt: Tensor) -> float:
    runner.start(len(prompt))
    begin = time.perf_counter()
    runner.next_logits(prompt)
    return time.perf_counter() - begin


def _generate(runner: Runner, prompt: Tensor, how: Lengths) -> list[float]:
    """Return the seconds of every generated token, always the likeliest one, after the prompt is read."""
    runner.start(len(prompt))
    token = runner.next_logits(prompt).argmax(-1, keepdim=True)
    seconds = []
    for _ in range(how.generated):
        begin = time.perf_counter()
        token = runner.next_logits(token).argmax(-1, keepdim=True)
        seconds.append(time.perf_counter() - begin)
    return seconds


def in_process(work: Callable[..., Any], *arguments: object) -> Any:
    """Return what `work` returns in a process of its own; BadInput if it raises that, RuntimeError if it fails."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "bench.edge.preload"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, work, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(DEADLINE_S):
            raise RuntimeError(f"took more than {DEADLINE_S:.0f} s")
        kind, value = ours.recv()
    except EOFError:
        process.join(DEADLINE_S)
        raise RuntimeError(f"its process ended with code {process.exitcode}: out of memory?") from None
    finally:
        process.kill()
        process.join()
    if kind == "done":
        return value
    raise BadInput(value) if kind == "bad input" else RuntimeError(value)


def _work(answer: Connection, work: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    processes.die_with_parent()
    try:
        answer.send(("done", work(*arguments)))
    except BadInput as error:
        answer.send(("bad input", str(error)))
    except Exception as error:
        answer.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())}"))
