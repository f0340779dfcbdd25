"""How far rounding can take a run's gradients and weights from the reference's, element by element.

Every bound is a worst case: the number of roundings times the unit roundoff times what is rounded (Higham, "Accuracy
and Stability of Numerical Algorithms", 2002). A run and its reference round independently, so that both count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.config import RunConfig
from bench.rank.train import build_optimizer
from strategies.base import torch_dtype

FP32 = 2.0**-24
# 2^-p of a format with p significant bits: the largest relative error of rounding to it once.
UNIT_ROUNDOFF = {"fp32": FP32, "fp16": 2.0**-11, "bf16": 2.0**-8}
# Roundings of both optimizers in one step, relative to what they round.
SGD_ROUNDINGS = 2 * 4  # decay, momentum, learning rate, subtraction
# adamw's betas are rounded to fp32, so that 1 - 0.95 has a relative error of 20 units, in the mean square and in its
# bias correction; with the root, the quotient and the products that is less than 64.
ADAM_ROUNDINGS = 2 * 64
ADDITIONS = 2 * 2  # decay and subtraction, relative to the weight


def gamma(roundings: int, unit: float) -> float:
    """Return the largest relative error after so many roundings (Higham, 2002, lemma 3.1)."""
    return roundings * unit / (1 - roundings * unit)


def half_smallest(number_format: str) -> float:
    """Return the largest absolute error of rounding to a format below its normal numbers."""
    found = torch.finfo(torch_dtype(number_format))
    return found.smallest_normal * found.eps / 2


def sum_error(config: RunConfig, mean_magnitude: Tensor, scale: float) -> Tensor:
    """Return the bound of a mean gradient, given the mean of the workers' absolute gradients; both unscaled.

    On the wire a gradient is rounded once as it is sent, once in each of W - 1 additions and once as it is divided: no
    strategy rounds more often, whatever the order of its sum (Higham, 2002, equation 4.4: the error of a sum of W
    numbers in any order is at most gamma(W - 1) times the sum of their absolute values). In fp32 it is also summed,
    divided and unscaled, here and there.
    """
    workers, wire = config.num_workers, config.wire_dtype
    relative = gamma(workers + 1, UNIT_ROUNDOFF[wire]) + gamma(2 * (workers + 3), FP32)
    return relative * mean_magnitude + (workers + 1) * half_smallest(wire) / scale


def pass_error(config: RunConfig, mean_magnitude: Tensor, num_tokens: int) -> Tensor:
    """Return an allowance where the reference's passes are not bitwise the workers': another processor, or a GPU.

    Operands are rounded in `precision`, of which a few fall to the other side; sums over n tokens in fp32 differ by
    about sqrt(n) units (Higham and Mary, SIAM J. Sci. Comput. 41, 2019). Relative to a tensor's root mean square.
    """
    unit = UNIT_ROUNDOFF[config.precision]
    relative = 4 * unit + 8 * math.sqrt(num_tokens) * FP32
    return relative * mean_magnitude.square().mean().sqrt()


def clipping_error(norm: float, error_norm: float, num_elements: int) -> float:
    """Return the relative error of a gradient's L2 norm, and so of the factor that clips it.

    By the triangle inequality the norm is off by at most the norm of the error; its own sum by sqrt(n) units.
    """
    return error_norm / norm + math.sqrt(num_elements) * FP32 if norm else 0.0


class BoundedOptimizer:
    """The optimizer of a run on the reference's weights; `errors` bound how far the run's weights are from these."""

    def __init__(self, config: RunConfig, model: nn.Module) -> None:
        self._optimizer = build_optimizer(config, model)
        self.parameters = list(model.parameters())
        self._group_of = {p: group for group in self._optimizer.param_groups for p in group["params"]}
        self.errors = [torch.zeros_like(p) for p in self.parameters]
        self._first = [torch.zeros_like(p) for p in self.parameters]  # bounds of the momentum, of Adam's mean
        self._square = [torch.zeros_like(p) for p in self.parameters]  # Adam's mean square of the gradient's bound
        self._steps = 0
        self._propagate = self._adam_error if config.optimizer == "adamw" else self._sgd_error

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], errors: Sequence[Tensor]) -> None:
        """Update with a mean gradient, given its bound."""
        self._steps += 1
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        for index, (gradient, error) in enumerate(zip(gradients, errors, strict=True)):
            parameter = self.parameters[index]
            state = self._optimizer.state[parameter]
            self.errors[index] = self._propagate(index, gradient, error, state, self._group_of[parameter])

    def _sgd_error(
        self, index: int, gradient: Tensor, error: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Tensor:
        """Bound w - lr·b, where b = momentum·b + g + decay·w: it is linear in all that has a bound."""
        weights, before = self.parameters[index].abs(), self.errors[index]
        momentum, decay, rate = (float(group[name]) for name in ("momentum", "weight_decay", "lr"))
        step = gradient.abs() + decay * weights
        rounding = SGD_ROUNDINGS * FP32
        buffer = state["momentum_buffer"].abs() if momentum else step
        first = momentum * self._first[index] + error + decay * before + rounding * (2 * step + buffer)
        self._first[index] = first
        return before + rate * (first + rounding * buffer) + ADDITIONS * FP32 * weights

    def _adam_error(
        self, index: int, gradient: Tensor, error: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Tensor:
        """Bound Adam's quotient m/(r + eps): m is a mean of the gradients, r the root of the mean of their squares.

        m is linear in the gradients. r is a weighted 2-norm of them, so that it is off by at most the same norm of
        their bounds. No quotient exceeds `_largest_quotient`.
        """
        beta1, beta2 = map(float, group["betas"])
        eps, rate, decay = (float(group[name]) for name in ("eps", "lr", "weight_decay"))
        corrections = 1 - beta1**self._steps, 1 - beta2**self._steps
        rounding = ADAM_ROUNDINGS * FP32
        mean, root = state["exp_avg"].abs(), state["exp_avg_sq"].sqrt()
        rounded = rounding * (mean + 2 * (1 - beta1) * gradient.abs())
        first = self._first[index] = beta1 * self._first[index] + (1 - beta1) * error + rounded
        square = self._square[index] = beta2 * self._square[index] + (1 - beta2) * error.square()
        mean, first = mean / corrections[0], first / corrections[0]
        root, of_root = root / math.sqrt(corrections[1]), (square.sqrt() + rounding * root) / math.sqrt(corrections[1])
        quotient = mean / (root + eps)
        of_quotient = (first + quotient * of_root) / ((root - of_root).clamp(min=0) + eps)
        of_quotient = of_quotient.minimum(quotient + _largest_quotient(beta1, beta2, self._steps))
        before = self.errors[index] * (1 - rate * decay)
        return before + rate * (of_quotient + rounding * quotient) + ADDITIONS * FP32 * self.parameters[index].abs()


def _largest_quotient(beta1: float, beta2: float, steps: int) -> float:
    """Return the largest possible m/r after so many steps (Cauchy and Schwarz)."""
    ratio = sum(((1 - beta1) * beta1**k) ** 2 / ((1 - beta2) * beta2**k) for k in range(steps))
    return math.sqrt(ratio * (1 - beta2**steps)) / (1 - beta1**steps)
