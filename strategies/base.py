"""The interface of a strategy: what the training loop calls, and what the harness observes."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from strategies.allreduce import Allreduce, identify_allreduce, ring_volume
from strategies.gradients import LossScaler, apply_mean_gradient, on_gradient, total_norm
from strategies.group import Group
from strategies.options import NUMBER_FORMATS, Options
from strategies.volume import Volume


@dataclass(frozen=True)
class Observed:
    """A strategy's counters and times on this rank; the defaults mean unknown.

    The harness reads it after every step's `synchronize()`, so it must be cheap. Times are seconds.
    """

    moved: Volume = field(default_factory=Volume)  # since the strategy was created
    communication_s: float = 0.0  # of the last step: from its first gradient to the end of its communication
    wait_in_forward_s: float = 0.0  # of the last step: how long forward() waited for weights or for another rank
    backward_in_forward_s: float = 0.0  # of the last step: how long forward() computed gradients, as pipelines do
    wait_in_backward_s: float = 0.0  # of the last step: how long backward() waited for the end of communication
    # Of each message size (bytes) at which it was identified: "ring", "any" or "not_ring" (`identify_allreduce`).
    allreduce_of_bytes: Mapping[int, str] = field(default_factory=dict)
    shard_imbalance: float | None = (
        None  # λ: the largest server's share of the parameters over an equal share; 1.0 is balanced
    )
    shares_memory: bool = False  # whether messages to another rank lie in shared memory and are not sent
    # Staleness on this rank's server: number of updates by the number of other updates that their gradient missed.
    missed_updates: Counter[int] = field(default_factory=Counter)
    # Of a dedicated server, from its first gradient to its last: time without a message to handle.
    server_idle_s: float = 0.0
    largest_lead: int = 0  # steps by which a worker that was given weights was ahead of the slowest, at most

    @property
    def allreduce_algorithm(self) -> str | None:
        """ "not_ring" if it was no ring at one message size or more; None where there is no allreduce."""
        found = set(self.allreduce_of_bytes.values())
        return "not_ring" if "not_ring" in found else next(iter(found), None)


class UnusableOptions(ValueError):
    """Options that cannot be used with this model; every rank raises it alike."""


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's type of a number format: fp32, fp16 or bf16."""
    dtype: torch.dtype = getattr(torch, NUMBER_FORMATS[name].torch_name)
    return dtype


class Strategy(ABC):
    """How the gradients of many workers become one update of the same weights.

    A worker calls, for each step: `scaled(loss).backward()` inside `accumulate(...)` once per pass, then
    `synchronize()`, then `step()`; and `settle()` before it looks at the weights between steps. A server calls
    `serve()` instead. Every rank calls `prepare()` first and `close()` last.
    """

    is_server = False

    def __init__(self, group: Group, options: Options) -> None:
        self.group = group
        self.options = options
        self.counters = Volume()
        self.scaler = LossScaler(options.loss_scaling)
        self.communication_s = 0.0
        self.wait_in_forward_s = 0.0  # of this step so far: waiting for new weights
        self.wait_in_backward_s = 0.0  # of this step so far: backward stood still for other ranks
        self._hooks: list[RemovableHandle] = []
        self._first_gradient_at: float | None = None
        self._last_gradient_at = 0.0

    @property
    def num_workers(self) -> int:
        """How many ranks train: all of them, unless some only serve."""
        return self.group.size

    @property
    def worker(self) -> int:
        """Which worker this rank is, from 0; servers have no meaningful value."""
        return self.group.rank

    @property
    def replica(self) -> int:
        """Which copy of the model this worker trains, from 0: it says which part of the global batch is its own."""
        return self.worker

    @property
    def has_loss(self) -> bool:
        """Whether this worker's module returns the loss; of a pipeline only the last stage's does."""
        return True

    @abstractmethod
    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Put rank 0's weights everywhere, install hooks, return the module to train. Collective."""

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of one forward-backward pass; only the last of a step communicates."""
        return nullcontext()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss to call backward() on: scaled against fp16 underflow, divided by the number of passes."""
        return loss * (self.scaler.scale / self.options.gradient_accumulation)

    @abstractmethod
    def synchronize(self) -> None:
        """Block until this step's communication is done: the time it takes is exposed communication."""

    @abstractmethod
    def step(self) -> None:
        """Apply the synchronized gradient, or skip the update on every worker if it is not finite."""

    def settle(self) -> None:  # noqa: B027  # most strategies have nothing left to do
        """Wait until the model holds the weights of all steps so far, which the next forward would wait for."""

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return on rank 0 all weights of the model, given those of a worker's part by their names in the whole model.

        Collective among workers that hold parts, also after close().
        """
        return dict(weights)

    def serve(self) -> None:
        """Aggregate and update until the last worker closes (server ranks only)."""
        raise RuntimeError(f"{type(self).__name__} has no servers")

    def observe(self) -> Observed:
        """Return what this rank has done so far; a subclass adds what it knows."""
        return Observed(moved=replace(self.counters), communication_s=self.communication_s)

    def close(self) -> None:
        """Release what prepare() took: a hook that stays would keep this strategy alive with the model. Collective."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> Strategy:
        """Return the strategy, to be closed at the end of a ``with`` block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close, unless the block failed: the other ranks would wait for this one in vain."""
        if kind is None:
            self.close()

    def _watch_gradients(self, model: nn.Module) -> None:
        """Record when each step's first and last gradient are ready, between which communication can overlap."""

        def ready(_: Tensor) -> None:
            self._last_gradient_at = time.perf_counter()
            if self._first_gradient_at is None:
                self._first_gradient_at = self._last_gradient_at

        for parameter in model.parameters():
            if parameter.requires_grad:
                self._hooks.append(on_gradient(parameter, ready))

    def _communication_ended(self) -> None:
        """Set communication_s: from the step's first gradient until now."""
        if self._first_gradient_at is not None:
            self.communication_s = time.perf_counter() - self._first_gradient_at
        self._first_gradient_at = None


class WorkerOptimizer(Strategy):
    """A strategy whose workers each hold the mean gradient and run the same optimizer on it."""

    _allreduce_of_bytes: Mapping[int, str] = {}

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Wait for every rank; keep the optimizer and the parameters that it updates. Collective."""
        self.group.barrier()
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._optimizer = optimizer
        return model

    def synchronize(self) -> None:
        """Do nothing: without communication there is nothing to wait for."""

    def step(self) -> None:
        """Apply the mean gradient, or skip it if it is not finite."""
        apply_mean_gradient(self._parameters, self._apply, self.options.clip_norm, self.scaler, self._norm)
        self._optimizer.zero_grad()

    def observe(self) -> Observed:
        """Return what every strategy knows, and which allreduce ran."""
        return replace(super().observe(), allreduce_of_bytes=self._allreduce_of_bytes)

    def _apply(self) -> None:
        self._optimizer.step()

    def _norm(self, gradients: Sequence[Tensor]) -> float:
        """Return the norm of the whole model's mean gradient."""
        return total_norm(gradients)

    def _identify(self, allreduce: Allreduce, sizes: Iterable[int], dtype: torch.dtype) -> None:
        """Identify the algorithm that sums vectors of so many elements. Collective."""
        rank, size = self.group.rank, self.group.size
        self._allreduce_of_bytes = {
            num_elements * dtype.itemsize: identify_allreduce(allreduce, rank, size, num_elements, dtype)
            for num_elements in sizes
        }

    def _count_ring(self, num_elements: int) -> None:
        """Count what a ring-allreduce of so many elements moves; unknown if the algorithm is not a ring."""
        itemsize = torch_dtype(self.options.wire_dtype).itemsize
        moved = ring_volume(num_elements, itemsize, self.group.rank, self.group.size)
        unknown = "not_ring" in self._allreduce_of_bytes.values()
        self.counters.add(*([None] * 4 if unknown else vars(moved).values()))
