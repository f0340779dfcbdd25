"""Emulated compute: a GPT whose layers sleep instead of calculating.

Every layer of the real model is replaced by one with the same parameters at the same place of the module tree, so that
the hooks of a strategy fire in the same order and at the same time as in real training. All weights and gradients are
views of one vector of zeros as long as the largest of them: sums, means, norms and updates of zeros are zero, so
nothing is trained. Copies, casts and messages of a strategy are real.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bench.config import RunConfig
from bench.durations import Durations, slowdown
from bench.rank.asleep_stage import EmulatedStage
from bench.rank.data import Corpus
from bench.rank.model import GPT, split_linears
from strategies.base import Strategy

SumOverRanks = Callable[[Tensor], None]
MIN_WAIT_S = 1e-3  # longer than Python takes between two layers: somebody has waited who does not say so
MIN_UPDATE_S = 1e-4  # shorter updates of chunks are slept together: a sleep takes some 0.1 ms longer than asked for


class SleepSchedule:
    """Sleeps the durations of one worker's layers, towards absolute deadlines.

    A layer begins at the deadline of the one before it, so that neither oversleeping nor Python's overhead accumulates:
    hooks that copy or enqueue a tensor overlap with compute, as on a GPU, and delay it only if they take longer. What
    does not overlap is a wait for weights or for other ranks, however short. In forward the strategy says whether it
    waited (`wait_in_forward_s`), and in backward, too, if it blocks that (`wait_in_backward_s`): the layer then begins
    when it is reached; so it does in forward MIN_WAIT_S or more after the last
    sleep ended. Between phases the time since then is added to the deadline. Thus no strategy gains by waiting often
    and briefly, nor loses by threads of its own that delay the end of a sleep.

    Sleeping releases the GIL, so a thread of the strategy can run; MPI progresses no more than during real compute.
    """

    def __init__(self, config: RunConfig, durations: Durations, worker: int, strategy: Strategy | None = None) -> None:
        self._strategy = strategy
        self._config = config
        self._parts = config.gradient_accumulation * config.num_micro_batches  # passes of one step
        self._durations = durations
        self._worker = worker
        self._passes = 0
        self._deadline = self._woke = time.perf_counter()
        self._phase = ""
        self._waited_s = 0.0
        self.overshoots_s: list[float] = []  # of each sleep in the measured steps

    def begin_pass(self) -> None:
        """Begin a forward pass."""
        self._step = self._passes // self._parts
        self._slowdown = slowdown(self._config, self._worker, self._step)
        self._passes += 1

    def begin_part(self) -> None:
        """Begin a pipeline's forward or backward of a micro-batch, now that what it needs from other ranks is here."""
        self._deadline = self._woke = time.perf_counter()
        self._phase = ""

    def forward(self, layer: str, share: float = 1.0) -> None:
        """Sleep for a share of one layer's forward."""
        self._sleep(self._start("forward"), share * self._durations.forward_s[layer] / self._parts)

    def backward(self, layer: str, share: float = 1.0) -> None:
        """Sleep for a share of one layer's backward."""
        self._sleep(self._start("backward"), share * self._durations.backward_s[layer] / self._parts)

    def update(self, seconds: float) -> None:
        """Sleep for an update of the weights."""
        self._sleep(self._start("update"), seconds)

    def _start(self, phase: str) -> float:
        """Return when the next sleep begins: at the last deadline, unless the strategy has waited since."""
        now, same = time.perf_counter(), phase == self._phase
        between_s = now - self._woke
        strategy = self._strategy
        waited_s = strategy.wait_in_forward_s + strategy.wait_in_backward_s if strategy else 0.0
        told = waited_s not in (0.0, self._waited_s) and phase != "update"  # each step counts anew
        self._phase, self._waited_s = phase, waited_s
        if phase == "backward" and same and not told:
            return self._deadline
        if told or between_s >= MIN_WAIT_S:
            return now
        return self._deadline if same else self._deadline + between_s

    def _sleep(self, start: float, seconds: float) -> None:
        self._deadline = start + seconds * self._slowdown
        if seconds:
            time.sleep(max(0.0, self._deadline - time.perf_counter()))
        self._woke = time.perf_counter()
        if seconds and self._step >= self._config.warmup_steps:
            self.overshoots_s.append(max(0.0, self._woke - self._deadline))


class ServerUpdates:
    """Sleeps as long as a server's updates take; short ones add up until they can be slept exactly enough."""

    def __init__(self) -> None:
        self._owed_s = 0.0

    def update(self, seconds: float) -> None:
        """Sleep for an update of some weights, and for those that were too short before."""
        self._owed_s += seconds
        if self._owed_s < MIN_UPDATE_S:
            return
        began = time.perf_counter()
        time.sleep(self._owed_s)
        self._owed_s -= time.perf_counter() - began  # below 0 after a sleep that was too long: the next are shorter


class _LayerFunction(torch.autograd.Function):
    """A layer's node in the autograd graph: passes a scalar on; its backward sleeps and returns the gradients."""

    @staticmethod
    def forward(ctx: Any, layer: EmulatedLayer, x: Tensor, *_: Tensor) -> Tensor:
        ctx.layer = layer
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        ctx.layer.backward()
        return (None, *upstream, *ctx.layer.gradients())


class EmulatedLayer(nn.Module):
    """Replaces a module with parameters: the same names and shapes, all zeros."""

    def __init__(
        self, name: str, original: nn.Module, zeros: Tensor, schedule: SleepSchedule, config: RunConfig
    ) -> None:
        super().__init__()
        self.name = name
        self.schedule = schedule
        self._zeros, self._config = zeros, config
        # Else parameters stay the same, and so does the graph.
        self._in_every_pass = config.kind.gathers_weights or config.kind.splits == "heads"
        self._share = 1.0  # of the layer that this rank computes
        self._sum_in_forward: SumOverRanks | None = None
        self._sum_in_backward: SumOverRanks | None = None
        self._set_parameters({key: parameter.shape for key, parameter in original.named_parameters()})
        self._keys = [key for key, _ in original.named_parameters()]
        if isinstance(original, nn.Linear) and config.precision == "fp32":
            # autograd finishes the bias's gradient before the weight's, which passes a transpose; not under autocast.
            self._keys.reverse()
        self._find_gradients()

    def _set_parameters(self, shapes: Mapping[str, Sequence[int]]) -> None:
        for key, shape in shapes.items():
            self.register_parameter(key, nn.Parameter(self._zeros[: math.prod(shape)].view(*shape)))

    def _find_gradients(self) -> None:
        self._in_order = [self.get_parameter(key) for key in self._keys]
        self._gradients = [self._zeros[: parameter.numel()].view(parameter.shape) for parameter in self._in_order]

    def divide(self, size: int, is_columns: bool, add_up: SumOverRanks) -> None:
        """Keep one of `size` equal parts; `add_up` replaces activations by their sums over the ranks of all parts.

        Those that a layer of rows returns are summed in forward, the gradients of a layer of columns' in backward.
        """
        rows, columns = self.get_parameter("weight").shape
        if is_columns:
            self._set_parameters({"weight": (rows // size, columns), "bias": (rows // size,)})
        else:
            self._set_parameters({"weight": (rows, columns // size)})
        self._find_gradients()
        self._share = 1 / size
        if is_columns:
            self._sum_in_backward = add_up
        else:
            self._sum_in_forward = add_up

    def _activations(self) -> Tensor:
        """Return zeros of the shape of what passes between blocks: (sequences of one pass, T, C)."""
        shape, sequences = self._config.gpt, self._config.batch_size // self._config.gradient_accumulation
        return torch.zeros(sequences, shape.block_size, shape.n_embd)

    def append_to_graph(self, x: Tensor) -> Tensor:
        """Append this layer to the autograd graph after x; () -> ()."""
        output: Tensor = _LayerFunction.apply(self, x, *self._in_order)  # type: ignore[no-untyped-call]
        self._output = output
        return output

    def forward(self, x: Tensor) -> Tensor:
        """Sleep; () -> ()."""
        self.schedule.forward(self.name, self._share)
        if self._sum_in_forward:
            self._sum_in_forward(self._activations())
        if not self._in_every_pass:
            return self._output
        self._in_order = [self.get_parameter(key) for key in self._keys]
        return self.append_to_graph(x)

    def backward(self) -> None:
        """Sleep for the backward."""
        self.schedule.backward(self.name, self._share)
        if self._sum_in_backward:
            self._sum_in_backward(self._activations())

    def gradients(self) -> Iterable[Tensor]:
        """Return new views of the zeros, one per parameter, in the order in which real training finishes gradients."""
        # Autograd adopts a gradient that nothing else references and that has no predecessor; otherwise it would copy
        # or add.
        for parameter in self._in_order:
            parameter.grad = None
        return [gradient.detach() for gradient in self._gradients]


class EmulatedSequence(nn.Module):
    """Replaces a module that calls its children in the order of their definition."""

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


class EmulatedGPT(EmulatedSequence):
    """The module tree of GPT with emulated layers. The output head is tied to wte and needs no layer of its own.

    The autograd graph is built once and used in every pass: it saves no tensors that backward would free. Where passes
    gather the weights (fsdp) or layers are divided (tensor_parallel), parameters are replaced, and each pass builds its
    own.
    """

    def __init__(self, config: RunConfig, durations: Durations, worker: int, strategy: Strategy | None = None) -> None:
        with torch.device("meta"), _SkipInitialisation():
            original = GPT(config.gpt)
        schedule = SleepSchedule(config, durations, worker, strategy)
        # NumPy's zeros take no memory until they are written to.
        zeros = torch.from_numpy(np.zeros(max(p.numel() for p in original.parameters()), np.float32))

        def emulate(name: str, module: nn.Module) -> nn.Module:
            children = {key: emulate(f"{name}.{key}", child) for key, child in module.named_children()}
            if isinstance(module, nn.ModuleList):
                return nn.ModuleList(children.values())
            return EmulatedSequence(children) if children else EmulatedLayer(name, module, zeros, schedule, config)

        super().__init__({name: emulate(name, child) for name, child in original.named_children()})
        self.schedule = schedule
        self._config = config
        self._input = x = torch.zeros(())
        for module in self.modules():
            if isinstance(module, EmulatedLayer):
                x = module.append_to_graph(x)

    def forward(self, *_: Tensor) -> Tensor:
        """Sleep for all layers' forward; return a meaningless loss of zero."""
        self.schedule.begin_pass()
        return super().forward(self._input)

    def split_linears(self) -> dict[str, str]:
        """Return how tensor parallelism divides each linear layer."""
        return split_linears(self._config.gpt.n_layer)

    def stage(self, index: int, count: int) -> EmulatedStage:
        """Return one of `count` consecutive parts with equally many blocks."""
        return EmulatedStage(self._config, self, index, count)


class EmulatedOptimizer(torch.optim.Optimizer):
    """Sleeps instead of updating weights, in proportion to how many: wherever it runs, on a worker or on a server."""

    def __init__(
        self, params: Any, seconds_per_number: float = 0.0, schedule: SleepSchedule | ServerUpdates | None = None
    ) -> None:
        _skip_compiler_import()
        super().__init__(params, {"seconds_per_number": seconds_per_number, "schedule": schedule})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Sleep for an update of all parameters."""
        (group,) = self.param_groups
        group["schedule"].update(group["seconds_per_number"] * sum(map(_own_numel, group["params"])))


def _own_numel(parameter: Any) -> int:
    """Return how many elements of a parameter this rank holds."""
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return int(local.numel())


class EmptyCorpus(Corpus):
    """A corpus of batches without tokens, for emulated compute."""

    def __init__(self) -> None:
        super().__init__(np.empty(0, np.uint8), np.empty(0, np.uint8), "no data")

    def batch(self, config: RunConfig, worker: int, step: int) -> tuple[Tensor, Tensor]:
        """Return (tokens, targets), both (batch_size, 0): gradient accumulation splits the rows."""
        rows = torch.empty(config.batch_size, 0, dtype=torch.int64)
        return rows, rows


class _SkipInitialisation(TorchFunctionMode):
    """Skips torch.nn.init: on the meta device it has no effect, but imports torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Skip the functions of torch.nn.init, call all others."""
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def _skip_compiler_import() -> None:
    """Keep an optimizer's methods from importing torch's compiler, which takes more than a second of CPU per rank.

    They import it only to exclude themselves from compilation (torch._compile); here nothing is compiled.
    """
    for method in vars(torch.optim.Optimizer).values():
        inner = getattr(method, "__wrapped__", None)
        if inner is not None:
            inner.__dynamo_disable = inner
