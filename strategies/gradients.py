"""From a mean gradient to an update: loss scaling, clipping, and skipping what is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass
class LossScaler:
    """Dynamic loss scaling for fp16 gradients, as torch.amp.GradScaler does it.

    A state machine of its own rather than GradScaler, because under a parameter server workers and servers must
    change the scale at the same step and no worker holds the gradient that decides.
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


def gradient_factor(norm: float, clip_norm: float | None) -> float:
    """Return what to multiply a gradient of L2 norm `norm` with so that the norm is at most clip_norm.

    The 1e-6 is torch.nn.utils.clip_grad_norm_'s.
    """
    return 1.0 if clip_norm is None else min(1.0, clip_norm / (norm + 1e-6))


def on_gradient(parameter: nn.Parameter, act: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `act` with the parameter whenever a backward pass has finished its gradient; `remove()` ends that."""
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(act)  # type: ignore[no-untyped-call]
    return handle


def mark_stepped(optimizer: torch.optim.Optimizer) -> None:
    """Note that an update was applied without the optimizer's own `step()`, which torch's schedulers else warn of."""
    vars(optimizer)["_opt_called"] = True


def total_norm(gradients: Sequence[Tensor]) -> float:
    """Return the L2 norm of all gradients together."""
    return float(nn.utils.get_total_norm(gradients))


def apply_mean_gradient(
    parameters: Iterable[nn.Parameter], apply: Callable[[], object], clip_norm: float | None, scaler: LossScaler,
    norm_of: Callable[[Sequence[Tensor]], float] = total_norm,
) -> None:  # fmt: skip
    """Unscale and clip the gradients, then call `apply`; skip the update where the gradient is not finite.

    Every worker has the same mean gradient and decides alike. `norm_of` gives the norm of the whole model's gradient
    where these are only a part of it.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    finite = True
    if clip_norm is not None or scaler.enabled:
        norm = norm_of(gradients) / scaler.scale
        finite = norm < float("inf")
        factor = gradient_factor(norm, clip_norm) / scaler.scale
        if finite and factor != 1.0:
            torch._foreach_mul_(gradients, factor)
    if finite:
        apply()
    scaler.update(finite)
