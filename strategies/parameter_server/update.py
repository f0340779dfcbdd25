"""What a server does to a chunk's weights with their gradient: torch's fused kernels, no optimizers around them.

What an optimizer's step does besides (looking up state, grouping tensors, serving hooks, profilers and the compiler)
takes longer than the update of a chunk of 60 kB itself. The kernels also take the factor that makes a sum a mean: a
pass over memory of its own less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Divides the gradients by a number (None: 1), and updates the weights with them.
Update = Callable[[Tensor | None], None]


def make_update(
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> Update:
    """The update by an optimizer with the settings of one of its groups; its state is made here."""
    kinds: dict[type, Callable[..., Update]] = {torch.optim.SGD: SGDUpdate, torch.optim.AdamW: AdamWUpdate}
    return kinds[type(optimizer)](settings, list(weights), list(gradients))


class SGDUpdate:
    """As torch.optim.SGD, with momentum and Nesterov's.

    Its momentum begins as zeros, not as the first gradient: without dampening that is the same.
    """

    def __init__(self, settings: Mapping[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        assert settings["dampening"] == 0
        self._weights, self._gradients = weights, gradients
        self._momentum = [torch.zeros_like(each) for each in weights] if settings["momentum"] else []
        names = ("lr", "momentum", "weight_decay", "dampening", "nesterov", "maximize")
        self._settings = {name: settings[name] for name in names}

    def __call__(self, divisor: Tensor | None) -> None:
        """Update the weights."""
        torch._fused_sgd_(
            self._weights, self._gradients, self._momentum, **self._settings, is_first_step=False, grad_scale=divisor
        )


class AdamWUpdate:
    """As torch.optim.AdamW."""

    def __init__(self, settings: Mapping[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        assert not settings["amsgrad"]
        self._weights, self._gradients = weights, gradients
        self._mean = [torch.zeros_like(each) for each in weights]
        self._square = [torch.zeros_like(each) for each in weights]
        self._steps = [torch.zeros(()) for _ in weights]
        self._settings = {name: settings[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
        self._settings["beta1"], self._settings["beta2"] = settings["betas"]

    def __call__(self, divisor: Tensor | None) -> None:
        """Update the weights."""
        for step in self._steps:
            step += 1
        torch._fused_adamw_(
            self._weights, self._gradients, self._mean, self._square, [], self._steps, **self._settings,
            grad_scale=divisor,
        )  # fmt: skip
