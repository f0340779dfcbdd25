"""One worker's training loop, readable top to bottom. Every strategy goes through these lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bench.config import RunConfig
from bench.rank.clock import PhaseTimer
from bench.rank.data import Corpus
from bench.rank.model import GPT
from bench.records import StepRecord
from strategies.base import Strategy
from strategies.volume import Volume

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build_model(config: RunConfig, device: torch.device) -> GPT:
    """Return the GPT with the initial weights of `config.seed`: the same on every rank."""
    torch.manual_seed(config.seed)
    with device if device.type == "meta" else torch.device("cpu"):
        model = GPT(config.gpt)
    return model.to(device)


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer: matrices and embeddings decay, biases and norms, a group of their own, do not."""
    parameters = list(model.parameters())
    decaying = [p for p in parameters if p.dim() >= 2 and config.weight_decay]  # without decay one group is faster
    others = [p for p in parameters if p.dim() < 2 or not config.weight_decay]
    groups = [{"params": decaying, "weight_decay": config.weight_decay}] if decaying else []
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def autocast(config: RunConfig, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which forward computes in `config.precision`."""
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[config.precision])


def train(
    config: RunConfig, module: nn.Module, strategy: Strategy, corpus: Corpus, device: torch.device,
    clock: PhaseTimer | None = None, on_wire: Callable[[], Volume] = Volume.unknown,
) -> Iterator[StepRecord]:  # fmt: skip
    """Train one worker for all steps of the run and yield what each step took; `clock` keeps the last one's phases.

    `on_wire` returns what the kernel has counted so far. A step's bytes are those since the end of the step before it,
    so that what a pull brings after a step's end counts in the next one, and in the last one by `with_tail`.
    """
    clock = clock or PhaseTimer(device)
    passes = config.gradient_accumulation
    moved, wire = Volume(), Volume()
    for step in range(config.total_steps):
        clock.begin_step()
        with clock.phase("data"):
            tokens, targets = (part.to(device) for part in corpus.batch(config, strategy.replica, step))
            micro_batches = zip(tokens.chunk(passes), targets.chunk(passes), strict=True)
        total_loss = torch.zeros((), device=device)
        for number, (x, y) in enumerate(micro_batches, start=1):
            with strategy.accumulate(last=number == passes):
                with clock.phase("forward"), autocast(config, device):
                    loss = module(x, y)
                with clock.phase("backward"):
                    strategy.scaled(loss).backward()  # type: ignore[no-untyped-call]
                total_loss += loss.detach() / passes
        with clock.phase("exposed_communication"):
            strategy.synchronize()
        seen = strategy.observe()
        clock.move("forward", "exposed_communication", seen.wait_in_forward_s)
        clock.move("forward", "backward", seen.backward_in_forward_s)
        clock.move("backward", "exposed_communication", seen.wait_in_backward_s)
        with clock.phase("optimizer"):
            strategy.step()
        step_s = clock.step_s()
        loss_found = float(total_loss) if config.compute == "real" and strategy.has_loss else None
        columns: dict[str, Any] = {f"{name}_s": value for name, value in clock.seconds.items()}
        wire_now = on_wire()
        yield StepRecord(
            worker=strategy.worker,
            step=step,
            warmup=step < config.warmup_steps,
            loss=loss_found,
            step_s=step_s,
            communication_s=seen.communication_s,
            **columns,
            moved=seen.moved - moved,
            wire=wire_now - wire,
        )
        moved, wire = seen.moved, wire_now


def with_tail(steps: Sequence[StepRecord], moved: Volume, wire: Volume) -> list[StepRecord]:
    """Return steps whose bytes add up to those of the whole run: what followed the last step is added to it.

    A parameter server's last weights arrive then.
    """
    if not steps:
        return []
    *others, last = steps
    return [*others, replace(last, moved=_rest(moved, others, "moved"), wire=_rest(wire, others, "wire"))]


def _rest(total: Volume, steps: Sequence[StepRecord], name: str) -> Volume:
    """Return what of a total is in none of these steps."""
    counted = Volume()
    for step in steps:
        counted.add(*vars(getattr(step, name)).values())
    return total - counted


@torch.no_grad()
def held_out_loss(config: RunConfig, model: nn.Module, corpus: Corpus, device: torch.device) -> float | None:
    """Return the mean loss on `eval_batches` held-out batches, nats per token; None if there are none."""
    losses = []
    for number in range(config.eval_batches):
        tokens, targets = corpus.held_out_batch(config, number)
        with autocast(config, device):
            losses.append(float(model(tokens.to(device), targets.to(device))))
    return sum(losses) / len(losses) if losses else None
