"""What every strategy is: the interface that one training loop drives, and what it counts."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from strategies.options import NUMBER_FORMATS, Options

Span = tuple[str, float, float]  # what, begin and end in seconds of `time.perf_counter()`


class Group(Protocol):
    """The ranks of one run, as the harness and a strategy's set-up talk to each other.

    Objects are pickled: never call these inside a timed step.
    """

    rank: int
    size: int

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value in rank order on rank 0, an empty list elsewhere. Collective."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value everywhere. Collective."""
        ...

    def barrier(self) -> None:
        """Return once every rank is here. Collective."""
        ...


class SingleGroup:
    """A group of one process, which needs no library."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        """Return the one value."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Return the value."""
        return value

    def barrier(self) -> None:
        """Return at once."""


@dataclass
class CommunicationCounters:
    """What this rank has sent and received since its strategy was created.

    None is unknown: messages where the library decides how many carry the bytes, bytes too where it did not
    run the algorithm whose bytes are known.
    """

    bytes_sent: int | None = 0
    bytes_received: int | None = 0
    messages_sent: int | None = 0
    messages_received: int | None = 0

    def add(
        self,
        sent: int | None = 0,
        received: int | None = 0,
        messages_sent: int | None = 0,
        messages_received: int | None = 0,
    ) -> None:
        """Count bytes and messages that have just moved; None: unknown from now on."""
        self.bytes_sent = _plus(self.bytes_sent, sent)
        self.bytes_received = _plus(self.bytes_received, received)
        self.messages_sent = _plus(self.messages_sent, messages_sent)
        self.messages_received = _plus(self.messages_received, messages_received)


@dataclass
class Staleness:
    """What a server's asynchrony has done so far.

    `missed`: how many updates were by a gradient that did not know so many updates of other workers.
    `largest_lead`: steps by which a worker was ever given weights ahead of the slowest.
    """

    missed: Counter[int] = field(default_factory=Counter)
    largest_lead: int = 0


def _plus(count: int | None, more: int | None) -> int | None:
    return None if count is None or more is None else count + more


@dataclass
class LossScaler:
    """Dynamic loss scaling for fp16 gradients, as torch.amp.GradScaler does it.

    A plain state machine rather than GradScaler, because under a parameter server the workers and the
    servers must move it in step and no worker holds the gradient that decides.
    """

    enabled: bool
    scale: float = field(init=False)
    growth_interval: int = 2000
    good_steps: int = 0

    def __post_init__(self) -> None:
        self.scale = 2.0**16 if self.enabled else 1.0

    def update(self, finite: bool) -> None:
        """Halve the scale after a non-finite gradient, double it after `growth_interval` finite ones."""
        if not self.enabled:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale *= 0.5
        elif self.good_steps == self.growth_interval:
            self.scale *= 2.0
            self.good_steps = 0


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's type of a number format: fp32, fp16 or bf16."""
    dtype: torch.dtype = getattr(torch, NUMBER_FORMATS[name].torch_name)
    return dtype


def gradient_factor(norm: float, clip_norm: float | None) -> float:
    """Return what to multiply a gradient of L2 norm `norm` with so that the norm is at most clip_norm.

    The 1e-6 is torch.nn.utils.clip_grad_norm_'s.
    """
    return 1.0 if clip_norm is None else min(1.0, clip_norm / (norm + 1e-6))


def on_gradient(parameter: nn.Parameter, act: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `act` with the parameter whenever a backward pass has finished its gradient; `remove()` ends that."""
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(act)  # type: ignore[no-untyped-call]
    return handle


class Strategy(ABC):
    """How the gradients of many workers become one update of the same weights.

    A worker calls, for each step: `scaled(loss).backward()` inside `accumulate(...)` once per pass, then
    `synchronize()`, then `step()`; and `settle()` before it looks at the weights between steps. A server calls
    `serve()` instead. Everybody calls `close()`.
    """

    is_server = False
    allreduce_algorithm: str | None = None

    def __init__(self, group: Group, options: Options) -> None:
        self.group = group
        self.options = options
        self.counters = CommunicationCounters()
        self.scaler = LossScaler(options.loss_scaling)
        self.communication_s = 0.0
        self._first_gradient_at: float | None = None
        self._last_gradient_at = 0.0

    @property
    @abstractmethod
    def num_workers(self) -> int:
        """How many ranks train."""

    @property
    def worker(self) -> int:
        """Which worker this rank is, from 0; servers have no meaningful value."""
        return self.group.rank

    @abstractmethod
    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Put rank 0's weights everywhere, install hooks, return the module to train. Collective."""

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of one forward-backward pass; only the last of a step communicates."""
        return nullcontext()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss to call backward() on: scaled against fp16 underflow, shared among the passes."""
        return loss * (self.scaler.scale / self.options.gradient_accumulation)

    @abstractmethod
    def synchronize(self) -> None:
        """Block until this step's communication is done: the time it takes is exposed communication."""

    @abstractmethod
    def step(self) -> None:
        """Apply the synchronized gradient, or skip the update everywhere if it is not finite."""

    def serve(self) -> None:
        """Aggregate and update until the last worker closes (server ranks only)."""
        raise RuntimeError(f"{type(self).__name__} has no servers")

    @property
    def wait_in_forward_s(self) -> float:
        """Exposed communication that this step's forward() waited for: weights of the last update, seconds."""
        return 0.0

    @property
    def wait_in_backward_s(self) -> float:
        """Exposed communication that this step's backward() itself waited for, seconds."""
        return 0.0

    @property
    def shard_imbalance(self) -> float | None:
        """λ: the most that a server holds over its share, 1.0 when balanced; None without servers."""
        return None

    @property
    def shares_memory(self) -> bool:
        """Whether messages of this rank to another one lie in memory that both see, and are not sent."""
        return False

    def staleness(self) -> Staleness:
        """How stale gradients have been on this rank's server, if it has one."""
        return Staleness()

    def settle(self) -> None:  # noqa: B027  # most strategies have nothing left to do
        """Let the model hold the weights of all steps so far, which the next forward would bring."""

    def start_timeline(self) -> None:  # noqa: B027  # most strategies have no library that keeps one
        """Let the library behind the strategy record what it does. Collective."""

    def stop_timeline(self) -> dict[str, list[Span]]:
        """Return what the library did since then, per tensor; nothing where none was kept. Collective."""
        return {}

    def close(self) -> None:  # noqa: B027  # most strategies hold nothing
        """Release what prepare() took. Collective."""

    def _watch_gradients(self, model: nn.Module) -> None:
        """Note when each step's first and last gradient are ready: the span that communication can use."""

        def ready(_: Tensor) -> None:
            self._last_gradient_at = time.perf_counter()
            if self._first_gradient_at is None:
                self._first_gradient_at = self._last_gradient_at

        for parameter in model.parameters():
            on_gradient(parameter, ready)

    def _communication_ended(self) -> None:
        """Set communication_s: from the step's first gradient until now."""
        if self._first_gradient_at is not None:
            self.communication_s = time.perf_counter() - self._first_gradient_at
        self._first_gradient_at = None


def apply_mean_gradient(
    parameters: Iterable[nn.Parameter], apply: Callable[[], object], options: Options, scaler: LossScaler
) -> None:
    """Unscale, clip, apply; skip where the gradient is not finite, which every worker sees alike."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    finite = True
    if options.clip_norm is not None or scaler.enabled:
        norm = float(nn.utils.get_total_norm(gradients)) / scaler.scale
        finite = norm < float("inf")
        factor = gradient_factor(norm, options.clip_norm) / scaler.scale
        if finite and factor != 1.0:
            torch._foreach_mul_(gradients, factor)
    if finite:
        apply()
    scaler.update(finite)


class WorkerOptimizer(Strategy):
    """A strategy whose workers each hold the mean gradient and run the same optimizer on it."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Remember what to update. Collective."""
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._optimizer = optimizer
        return model

    @property
    def num_workers(self) -> int:
        """All ranks train."""
        return self.group.size

    def synchronize(self) -> None:
        """Nothing travels."""

    def step(self) -> None:
        """Apply the mean gradient, or skip it."""
        apply_mean_gradient(self._parameters, self._apply, self.options, self.scaler)
        self._optimizer.zero_grad()

    def _apply(self) -> None:
        self._optimizer.step()

    def _count_ring(self, num_elements: int) -> None:
        """Count what a ring-allreduce of this many elements sends; how many messages, only the library knows."""
        if self.allreduce_algorithm == "not_ring":
            self.counters.add(None, None, None, None)
            return
        itemsize = torch_dtype(self.options.wire_dtype).itemsize
        sent, received = ring_bytes(num_elements, itemsize, self.group.rank, self.group.size)
        self.counters.add(sent, received, None, None)


def ring_bytes(num_elements: int, element_bytes: int, rank: int, size: int) -> tuple[int, int]:
    """Return the bytes (sent, received) by one rank of a ring-allreduce of a vector.

    The vector is cut into `size` blocks, the first `num_elements % size` of them one element longer.
    Reduce-scatter passes on every block but rank+1, allgather every block but rank+2; what arrives is what
    the left neighbour passes on. (Patarasuk and Yuan, 2009; block numbering as in Open MPI.)
    """
    if size == 1:
        return 0, 0

    def sent(of: int) -> int:
        kept = _block(num_elements, (of + 1) % size, size) + _block(num_elements, (of + 2) % size, size)
        return (2 * num_elements - kept) * element_bytes

    return sent(rank), sent((rank - 1) % size)


def _block(num_elements: int, index: int, size: int) -> int:
    return num_elements // size + (index < num_elements % size)


Allreduce = Callable[[Tensor], Tensor]


def identify_allreduce(allreduce: Allreduce, rank: int, size: int, num_elements: int = 1 << 18) -> str:
    """Name the algorithm behind `allreduce` (a sum): ``ring``, ``any`` (2 ranks or fewer) or ``not_ring``.

    Floating-point addition is not associative, so the order of a sum shows in its last bits. A ring adds
    block b in rank order beginning at a rank that differs from block to block, each rank beginning 1/size
    of the vector; trees and halving-doubling begin everywhere alike. With 2 ranks all algorithms send the
    same bytes in the same order. Collective.
    """
    if size <= 2:
        return "any"
    generator = torch.Generator().manual_seed(20)
    samples = slice(None, None, max(1, num_elements >> 12))  # 4096 elements tell enough
    shape = (size, len(range(num_elements)[samples]))
    exponents = torch.randint(-8, 9, shape, generator=generator)
    inputs = torch.ldexp(torch.rand(shape, generator=generator) - 0.5, exponents)
    vector = torch.zeros(num_elements)
    vector[samples] = inputs[rank]
    result = allreduce(vector)[samples]
    matches = []
    for direction in (1, -1):
        sums = torch.stack([_cyclic_sum(inputs, start, direction) for start in range(size)])
        hits = sums.eq(result).to(torch.int8)
        telling = hits.sum(0) == 1  # elements whose sum has these bits from one starting rank only
        shares = hits[:, telling].float().mean(1) if telling.any() else torch.zeros(size)
        matches.append(bool((shares > 0.5 / size).all() and hits.sum(0).bool().float().mean() > 0.99))
    return "ring" if any(matches) else "not_ring"


def _cyclic_sum(inputs: Tensor, start: int, direction: int) -> Tensor:
    """Add the rows one after the other, beginning at `start`."""
    size = len(inputs)
    total = inputs[start].clone()
    for i in range(1, size):
        total += inputs[(start + direction * i) % size]
    return total
