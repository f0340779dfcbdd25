"""The GPT asleep: the same parameters, gradients in the same order and at the same moment, no arithmetic.

Every layer of the real model has a stand-in with the same parameters in the same place of the module tree, so that
whatever a strategy hooks into (gradients, modules) fires as in real training. All weights and all gradients are views
of one vector of zeros as long as the largest of them: nothing is trained, and zero is where every sum, mean, norm and
update of zeros stays. What a strategy copies, casts or sends is really copied, cast and sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bench.config import RunConfig
from bench.durations import Durations, slowdown
from bench.rank.data import Corpus
from bench.rank.model import GPT

WAITED_S = 1e-3  # a layer that comes later has waited for something; less is the emulation's own overhead


class Pace:
    """Sleeps through the layers of one worker, towards absolute deadlines.

    A layer begins where the one before it was to end, so that neither oversleeping nor Python's own time adds up. In
    backward that holds whatever happens: hooks that copy or enqueue a gradient run beside the compute, as they do
    beside a GPU, and delay it only where they last longer. In forward and between the phases a strategy may have to
    wait for weights or for others, which no compute hides: what comes late by WAITED_S or more begins when it comes.

    Sleeping releases Python's lock, so a thread of the strategy runs meanwhile; MPI progresses no more than in real
    compute.
    """

    def __init__(self, config: RunConfig, durations: Durations, worker: int) -> None:
        self._config = config
        self._durations = durations
        self._worker = worker
        self._passes = 0
        self._deadline = 0.0
        self._in_backward = False
        self.overshoots_s: list[float] = []  # how late layers ended that take time, in the measured steps

    def begin_pass(self) -> None:
        """Begin the forward of a pass."""
        self._step = self._passes // self._config.gradient_accumulation
        self._slowdown = slowdown(self._config, self._worker, self._step)
        self._passes += 1

    def forward(self, layer: str) -> None:
        """Sleep through one layer's forward."""
        self._in_backward = False
        self._sleep(self._due(), self._durations.forward_s[layer] / self._config.gradient_accumulation)

    def backward(self, layer: str) -> None:
        """Sleep through one layer's backward."""
        start = self._deadline if self._in_backward else self._due()
        self._in_backward = True
        self._sleep(start, self._durations.backward_s[layer] / self._config.gradient_accumulation)

    def optimizer(self) -> None:
        """Sleep through the update."""
        self._sleep(self._due(), self._durations.optimizer_s)

    def _due(self) -> float:
        now = time.perf_counter()
        return self._deadline if now - self._deadline < WAITED_S else now

    def _sleep(self, start: float, seconds: float) -> None:
        self._deadline = start + seconds * self._slowdown
        if seconds == 0:
            return
        time.sleep(max(0.0, self._deadline - time.perf_counter()))
        if self._step >= self._config.warmup_steps:
            self.overshoots_s.append(max(0.0, time.perf_counter() - self._deadline))


class _Asleep(torch.autograd.Function):
    """One layer in the graph: a scalar passes through, its backward hands out the layer's gradients."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, x: Tensor, *_: Tensor) -> Tensor:
        ctx.layer = layer
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        ctx.layer.pace.backward(ctx.layer.name)
        return (None, *upstream, *ctx.layer.gradients())


class Layer(nn.Module):
    """Stands in for a module with parameters: the same names and shapes, all zeros."""

    def __init__(self, name: str, original: nn.Module, zeros: Tensor, pace: Pace, autocast: bool) -> None:
        super().__init__()
        self.name = name
        self.pace = pace
        for key, parameter in original.named_parameters():
            self.register_parameter(key, nn.Parameter(zeros[: parameter.numel()].view(parameter.shape)))
        self._in_order = list(self.parameters())
        if isinstance(original, nn.Linear) and not autocast:
            # The product hands the bias its gradient at once, the weight through a transpose; a cast evens them.
            self._in_order.reverse()
        self._gradients = [zeros[: parameter.numel()].view(parameter.shape) for parameter in self._in_order]

    def join(self, x: Tensor) -> Tensor:
        """Take a place in the graph, after what gave x; () -> ()."""
        output: Tensor = _Asleep.apply(self, x, *self._in_order)  # type: ignore[no-untyped-call]
        self._output = output
        return output

    def forward(self, _: Tensor) -> Tensor:
        """Sleep; () -> ()."""
        self.pace.forward(self.name)
        return self._output

    def gradients(self) -> Iterable[Tensor]:
        """New views, one per parameter, in the order in which real training finishes them.

        Autograd takes over a gradient that nobody else holds, and copies or adds otherwise. So the views are new, and
        what an earlier pass of the step left is dropped: adding zeros to it would be arithmetic.
        """
        for parameter in self._in_order:
            parameter.grad = None
        return [gradient.detach() for gradient in self._gradients]


class Chain(nn.Module):
    """Stands in for a module that calls its children in the order of their definition."""

    def __init__(self, children: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self._called: list[nn.Module] = []
        for child in children.values():
            self._called += child if isinstance(child, nn.ModuleList) else [child]

    def forward(self, x: Tensor) -> Tensor:
        """() -> ()."""
        for module in self._called:
            x = module(x)
        return x


class EmulatedGPT(Chain):
    """The module tree of GPT, asleep. The head is tied to wte, whose gradient is ready last, so it needs no layer.

    The graph is the same in every pass, so it is made once: autograd frees nothing of it, for nothing is saved in it.
    """

    def __init__(self, config: RunConfig, durations: Durations, worker: int) -> None:
        with torch.device("meta"), _Uninitialised():
            original = GPT(config.gpt)
        pace = Pace(config, durations, worker)
        # NumPy's zeros take no memory until someone writes to them.
        zeros = torch.from_numpy(np.zeros(max(p.numel() for p in original.parameters()), np.float32))

        def stand_in(name: str, module: nn.Module) -> nn.Module:
            children = {key: stand_in(f"{name}.{key}", child) for key, child in module.named_children()}
            if isinstance(module, nn.ModuleList):
                return nn.ModuleList(children.values())
            return Chain(children) if children else Layer(name, module, zeros, pace, config.precision != "fp32")

        super().__init__({name: stand_in(name, child) for name, child in original.named_children()})
        self.pace = pace
        self._input = x = torch.zeros(())
        for module in self.modules():
            if isinstance(module, Layer):
                x = module.join(x)

    def forward(self, *_: Tensor) -> Tensor:
        """Sleep through all layers; a loss of zero, which means nothing."""
        self.pace.begin_pass()
        return super().forward(self._input)


class EmulatedOptimizer(torch.optim.Optimizer):
    """Sleeps where a worker would update its weights."""

    def __init__(self, params: Any, pace: Pace | None = None) -> None:
        _leave_compiler_out()
        super().__init__(params, {"pace": pace})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Sleep through the update."""
        self.param_groups[0]["pace"].optimizer()


class NoData(Corpus):
    """Stands in for a corpus: batches without tokens, for nobody reads them."""

    def __init__(self) -> None:
        super().__init__(np.empty(0, np.uint8), np.empty(0, np.uint8), "no data")

    def batch(self, config: RunConfig, worker: int, step: int) -> tuple[Tensor, Tensor]:
        """Return rows without columns, to be cut into passes."""
        rows = torch.empty(config.batch_size, 0, dtype=torch.int64)
        return rows, rows


class _Uninitialised(TorchFunctionMode):
    """Leaves parameters as they are: on the meta device there is nothing to fill, and trying imports the compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Skip the functions of torch.nn.init, call all others."""
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def _leave_compiler_out() -> None:
    """Spare every rank the import of torch's compiler (more than a second of CPU), which an optimizer's methods cause.

    They import it to exclude themselves from what it compiles (torch._compile); here nothing is compiled.
    """
    for method in vars(torch.optim.Optimizer).values():
        inner = getattr(method, "__wrapped__", None)
        if inner is not None:
            inner.__dynamo_disable = inner
