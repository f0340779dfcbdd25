"""How a server updates a chunk's weights: by torch's fused kernels where possible, else by the optimizer's own class.

An optimizer's `step` looks up state, groups tensors and serves hooks, which takes longer than the update of a chunk of
60 kB. A fused kernel also divides by the number of workers, which saves a pass over memory.
"""

from __future__ import annotations

import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from strategies.buffers import FlatLayout, Range

Settings = Mapping[str, Any]  # a param group, with or without its "params"
# How a step is implemented, not what it computes; these are the worker's choice for its own device.
IMPLEMENTATION = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
RUN_ON_WORKERS = 'set server_role="sum", so that every worker runs it'


class Update(Protocol):
    """The update of some pieces of a chunk that are in one param group."""

    def __call__(self, divisor: Tensor | None) -> None:
        """Update the weights with their gradients divided by a number (None: 1)."""

    def change(self, settings: Settings) -> None:
        """Use other settings from now on."""


class FusedSGD:
    """As torch.optim.SGD without dampening.

    Its momentum starts as zeros instead of the first gradient, which is then the same.
    """

    def __init__(self, settings: Settings, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        self._weights, self._gradients = list(weights), list(gradients)
        self._momentum: list[Tensor] = []
        self.change(settings)

    def change(self, settings: Settings) -> None:
        """Use other settings from now on."""
        names = ("lr", "momentum", "weight_decay", "dampening", "nesterov", "maximize")
        self._settings = {name: settings[name] for name in names}
        if settings["momentum"] and not self._momentum:
            self._momentum = [torch.zeros_like(each) for each in self._weights]

    def __call__(self, divisor: Tensor | None) -> None:
        """Update the weights with their gradients divided by a number (None: 1)."""
        torch._fused_sgd_(
            self._weights, self._gradients, self._momentum, **self._settings, is_first_step=False, grad_scale=divisor
        )


class FusedAdam:
    """As torch.optim.Adam and AdamW without amsgrad."""

    def __init__(self, settings: Settings, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        self._weights, self._gradients = list(weights), list(gradients)
        self._mean = [torch.zeros_like(each) for each in weights]
        self._square = [torch.zeros_like(each) for each in weights]
        self._steps = [torch.zeros(()) for _ in weights]
        self.change(settings)

    def change(self, settings: Settings) -> None:
        """Use other settings from now on."""
        self._settings = {name: settings[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
        self._settings["beta1"], self._settings["beta2"] = settings["betas"]

    def __call__(self, divisor: Tensor | None) -> None:
        """Update the weights with their gradients divided by a number (None: 1)."""
        for step in self._steps:
            step += 1
        self._kernel()(
            self._weights, self._gradients, self._mean, self._square, [], self._steps, **self._settings,
            grad_scale=divisor,
        )  # fmt: skip

    @staticmethod
    def _kernel() -> Any:
        return torch._fused_adam_


class FusedAdamW(FusedAdam):
    """As torch.optim.AdamW without amsgrad."""

    @staticmethod
    def _kernel() -> Any:
        return torch._fused_adamw_


class OptimizerUpdate:
    """An instance of the optimizer's own class over the pieces of a chunk, which must treat every element alike."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, settings: Settings, weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> None:  # fmt: skip
        self._gradients = list(gradients)
        parameters = [nn.Parameter(each, requires_grad=False) for each in weights]  # the same memory
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer = _same_optimizer(optimizer, parameters, settings)

    def change(self, settings: Settings) -> None:
        """Use other settings from now on."""
        self._optimizer.param_groups[0].update(_without_implementation(settings))

    def __call__(self, divisor: Tensor | None) -> None:
        """Update the weights with their gradients divided by a number (None: 1)."""
        if divisor is not None:
            for gradient in self._gradients:
                gradient.div_(divisor)
        self._optimizer.step()


def update_maker(
    optimizer: torch.optim.Optimizer, settings: Settings
) -> Callable[[list[Tensor], list[Tensor]], Update]:
    """Return what makes an update of weights and gradients by an optimizer, with one group's settings and no state."""
    kind = fused_class(optimizer, settings)
    return partial(kind, settings) if kind else partial(OptimizerUpdate, optimizer, settings)


def updates_maker(
    optimizer: torch.optim.Optimizer, layout: FlatLayout
) -> Callable[[Range, Tensor, Tensor], dict[int, Update]]:
    """Return what makes the updates, by param group, of a range of the flat vector, given its weights and gradient.

    Parameters in no group are not updated. Neighbours in one group are one piece, whatever their tensors: every element
    is updated alike.
    """
    makers = [update_maker(optimizer, settings) for settings in optimizer.param_groups]
    group_of = {p: number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}

    def make(span: Range, weights: Tensor, gradient: Tensor) -> dict[int, Update]:
        pieces: dict[int, list[slice]] = defaultdict(list)
        inside = layout.overlapping(*span)
        for number, alike in itertools.groupby(inside, lambda piece: group_of.get(layout.parameters[piece[0]], -1)):
            ranges = [elements for _, elements in alike]
            pieces[number].append(slice(ranges[0][0] - span[0], ranges[-1][1] - span[0]))
        pieces.pop(-1, None)
        return {
            number: makers[number]([weights[part] for part in parts], [gradient[part] for part in parts])
            for number, parts in pieces.items()
        }

    return make


def fused_class(optimizer: torch.optim.Optimizer, settings: Settings) -> type[FusedSGD] | type[FusedAdam] | None:
    """Return the class whose fused kernel updates as this optimizer does; None if there is none, or torch lacks it.

    The kernels are torch's private functions, so that another version may have others: a call with two numbers tells.
    """
    kind = type(optimizer)
    fused: type[FusedSGD] | type[FusedAdam] | None = None
    if kind is torch.optim.SGD and not settings["dampening"]:
        fused = FusedSGD
    elif kind in (torch.optim.Adam, torch.optim.AdamW) and not settings["amsgrad"]:
        decoupled = settings.get("decoupled_weight_decay", kind is torch.optim.AdamW)
        fused = FusedAdamW if decoupled else FusedAdam
    try:
        if fused:
            fused(settings, [torch.zeros(2)], [torch.zeros(2)])(torch.ones(()))
    except (AttributeError, TypeError, RuntimeError):
        return None
    return fused


def refusal(optimizer: torch.optim.Optimizer, holders: str = "servers", fix: str = RUN_ON_WORKERS) -> str | None:
    """Return why those who hold the weights cannot run this optimizer, and what to do; None if they can.

    They hold ranges of the flat vector, so that every element must be updated alike whatever its tensor. Two
    steps on a matrix and on its two halves as vectors show whether that holds.
    """
    name = type(optimizer).__name__
    if any(float(state.get("step", 1)) for state in optimizer.state.values()):
        return f"{name} already holds state, which {holders} do not take over: {fix}, or make a new optimizer"
    settings = dict(optimizer.param_groups[0])
    if "lr" in settings:
        settings["lr"] = 0.1  # a warm-up may start at 0, where no weight changes
    if fused_class(optimizer, settings):
        return None
    generator = torch.Generator().manual_seed(0)
    weights, *gradients = torch.randn(3, 4, 6, generator=generator)
    pieces = [piece.clone() for piece in weights.flatten().split(12)]
    try:
        whole = OptimizerUpdate(optimizer, settings, [weights], [gradient := torch.empty(4, 6)])
        split = OptimizerUpdate(optimizer, settings, pieces, halves := [torch.empty(12), torch.empty(12)])
        for given in gradients:
            gradient.copy_(given)
            for half, part in zip(halves, given.flatten().split(12), strict=True):
                half.copy_(part)
            whole(None)
            split(None)
    except Exception as error:
        return f"{holders} cannot run {name} on ranges of the parameters ({type(error).__name__}: {error}): {fix}"
    if not torch.allclose(torch.cat(pieces), weights.flatten(), rtol=1e-3, atol=1e-5):
        return f"{name} does not update every element alike, and {holders} hold parts of tensors: {fix}"
    return None


def _same_optimizer(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], settings: Settings
) -> torch.optim.Optimizer:
    """Return a new optimizer of the same class with other parameters, and the settings of one group."""
    accepted = inspect.signature(type(optimizer)).parameters
    values = _without_implementation({**optimizer.defaults, **settings})
    make: Any = type(optimizer)
    group = {"params": parameters, **_without_implementation(settings)}
    made: torch.optim.Optimizer = make([group], **{name: value for name, value in values.items() if name in accepted})
    return made


def _without_implementation(settings: Settings) -> dict[str, Any]:
    return {name: IMPLEMENTATION.get(name, value) for name, value in settings.items() if name != "params"}
