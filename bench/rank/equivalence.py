"""The equivalence gate: a run must update with the mean of what its workers' passes give, and with nothing else.

The reference is one process. In every step it takes the passes of all workers on the weights that the run's forward
read, averages their gradients, and applies the same optimizer to weights of its own. Nothing but rounding, on the wire
and in sums, may part the run's weights from these; rounding.py bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.config import RunConfig
from bench.rank.data import Corpus
from bench.rank.rehearsal import Rehearsal
from bench.rank.rounding import (
    UNIT_ROUNDOFF,
    BoundedOptimizer,
    clipping_error,
    half_smallest,
    pass_error,
    sum_error,
)
from bench.rank.train import autocast, build_model
from bench.rank.weights import Weights
from strategies.gradients import gradient_factor

BOUND = 1.0
LARGEST_FP16 = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Verdict:
    """The largest distance of a weight from the reference's over what rounding explains there, and where it is."""

    error: float
    where: str = ""
    bound: float = BOUND

    @property
    def passed(self) -> bool:
        """Whether rounding explains every distance."""
        return self.error <= self.bound

    def failure(self) -> str:
        """Return why the gate fails in one line, '' if it passes."""
        if self.passed:
            return ""
        size = f"{self.error:.3g} times what" if math.isfinite(self.error) else "not what"
        return f"it trained another model than one process on the workers' batches: {self.where} differs by {size} " + (
            "rounding explains"
        )


def different_models(num_models: int) -> str:
    """Return the failure of workers that ended with different weights, '' if all are equal."""
    return f"the workers ended with {num_models} different models" if num_models > 1 else ""


def compare(rehearsals: Sequence[Rehearsal], corpus: Corpus, device: torch.device) -> Verdict:
    """Return the verdict on what a run's workers did: the worst of all steps of all rehearsals."""
    return _worst([_compare(rehearsal, corpus, device) for rehearsal in rehearsals])


def _compare(rehearsal: Rehearsal, corpus: Corpus, device: torch.device) -> Verdict:
    config, workers = rehearsal.config, rehearsal.workers
    weights, scales = workers[0].weights, workers[0].scales
    reference = Reference(config, corpus, device)
    found = []
    for step in range(config.total_steps):
        found.append(reference.distance(weights[step], f"in step {step}"))
        losses = [worker.losses[step] for worker in workers[:: config.model_parallel_size]]
        if not found[-1].passed or not reference.step(step, weights[step], losses, scales[step], scales[step + 1]):
            return _worst(found)
    return _worst([*found, reference.distance(weights[-1], "after the last step")])


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    return max(verdicts, key=lambda verdict: verdict.error)


class Reference:
    """One process that takes the passes of all workers."""

    def __init__(self, config: RunConfig, corpus: Corpus, device: torch.device) -> None:
        self._config, self._corpus, self._device = config, corpus, device
        self._model = build_model(config, device)  # for passes, on the run's weights
        own = build_model(config, torch.device("cpu"))
        self._names = [name for name, _ in own.named_parameters()]
        self._optimizer = BoundedOptimizer(config, own)
        self._returned_in = config.wire_dtype if config.streams_weights and config.wire_dtype != "fp32" else None

    @torch.no_grad()
    def distance(self, weights: Weights, when: str) -> Verdict:
        """Return how far weights of the run are from the reference's."""
        worst = Verdict(0.0)
        for name, own, error in zip(self._names, self._optimizer.parameters, self._optimizer.errors, strict=True):
            bound = error
            if self._returned_in:  # who updates weights rounds them once more to send them
                unit = UNIT_ROUNDOFF[self._returned_in]
                bound = error + unit * (own.abs() + error) + half_smallest(self._returned_in)
            difference = (weights[name] - own).abs()
            ratio = float(torch.where(difference == 0, 0.0, difference / bound).max())
            if not ratio <= worst.error:  # or NaN
                worst = Verdict(ratio if math.isfinite(ratio) else math.inf, f"{name} {when}")
        return worst

    def step(self, step: int, weights: Weights, losses: Sequence[float], scale: float, next_scale: float) -> bool:
        """Do one step as the workers do; return whether the weights after it can be compared.

        They cannot where the workers' own gradients are not finite and nothing skips such a step.
        """
        gradients, magnitudes, is_same, largest = self._workers_passes(step, weights, losses, scale)
        config = self._config
        num_tokens = config.batch_size * config.gpt.block_size
        errors = [sum_error(config, magnitude, scale) for magnitude in magnitudes]
        if not is_same:
            errors = [e + pass_error(config, m, num_tokens) for e, m in zip(errors, magnitudes, strict=True)]
        norm, error_norm = _norm(gradients), _norm(errors)
        is_finite = math.isfinite(norm)
        if config.loss_scaling and config.wire_dtype == "fp16" and largest * config.num_workers > LARGEST_FP16:
            is_finite = next_scale >= scale  # it depends on the order of the sum whether the wire overflows
        if not is_finite:
            return config.loss_scaling or config.clip_norm is not None
        if config.clip_norm is not None:
            inexact = clipping_error(norm, error_norm, sum(each.numel() for each in gradients))
            factor = gradient_factor(norm, config.clip_norm)
            clips = norm * (1 + inexact) > config.clip_norm
            errors = [factor * (e + inexact * clips * g.abs()) for e, g in zip(errors, gradients, strict=True)]
            gradients = [factor * gradient for gradient in gradients]
        self._optimizer.step(gradients, errors)
        return True

    def _workers_passes(
        self, step: int, weights: Weights, losses: Sequence[float], scale: float
    ) -> tuple[list[Tensor], list[Tensor], bool, float]:
        """Return the mean gradient and the mean absolute gradient, unscaled, of all workers' passes on these weights.

        Also whether each worker's loss is bitwise equal, so that its gradient is, too, and the largest element of any
        worker's scaled gradient.
        """
        self._model.load_state_dict(weights)
        workers = self._config.num_replicas
        total = [torch.zeros(weights[name].shape) for name in self._names]
        magnitude = [torch.zeros_like(each) for each in total]
        # Of a split model sums are taken in another order, although the loss may be equal.
        is_same, largest = self._device.type == "cpu" and not self._config.kind.splits, 0.0
        for worker in range(workers):
            loss = self._passes(worker, step, scale)
            is_same &= loss == losses[worker]
            for index, parameter in enumerate(self._model.parameters()):
                gradient = parameter.grad
                assert gradient is not None
                gradient = gradient.cpu()
                largest = max(largest, float(gradient.abs().max()))
                total[index].add_(gradient)
                magnitude[index].add_(gradient.abs())
        divisor = workers * scale
        return [each / divisor for each in total], [each / divisor for each in magnitude], is_same, largest

    def _passes(self, worker: int, step: int, scale: float) -> float:
        """Leave the scaled gradient of one worker's batch in the model; return its loss."""
        passes = self._config.gradient_accumulation * self._config.num_micro_batches
        self._model.zero_grad()
        tokens, targets = (part.to(self._device) for part in self._corpus.batch(self._config, worker, step))
        total_loss = torch.zeros((), device=self._device)
        for x, y in zip(tokens.chunk(passes), targets.chunk(passes), strict=True):
            with autocast(self._config, self._device):
                loss = self._model(x, y)
            (loss * (scale / passes)).backward()
            total_loss += loss.detach() / passes
        return float(total_loss)


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(torch.linalg.vector_norm(each, dtype=torch.float64)) ** 2 for each in tensors))
