"""The equivalence gate: a run's weights must match one process's that trains on the concatenated batches.

A run that does not promise the same weights (asynchronous, compressed, local steps) must reach about the same loss.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.config import GATE_STEPS, MIN_CONVERGENCE, RunConfig
from bench.rank.data import Corpus
from bench.rank.train import build_model, build_optimizer, held_out_loss, train
from strategies import catalogue
from strategies.group import SingleGroup
from strategies.local import Local
from strategies.options import STRATEGY_KNOBS

Weights = dict[str, Tensor]

# 2^-p of a format with p significant bits: the largest relative error of rounding to it once.
UNIT_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
FP32_BOUND = 1e-5


@dataclass(frozen=True)
class Verdict:
    """Relative L2 distance of a run's weights from the reference, and the largest one that passes."""

    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the distance is within the bound."""
        return self.error <= self.bound

    def failure(self, num_models: int) -> str:
        """Return why the gate fails in one line, '' if it passes; `num_models` is how many models the workers have."""
        if num_models > 1 or self.passed:
            return different_models(num_models)
        detail = f"equivalence error {self.error:.2g}, bound {self.bound:.2g}"
        return f"it trained another model than one process on the concatenated batches ({detail})"


def different_models(num_models: int) -> str:
    """Return the failure of workers that ended with different weights, '' if all are equal."""
    return f"the workers ended with {num_models} different models" if num_models > 1 else ""


def convergence_failure(convergence: float, num_models: int) -> str:
    """Return why a run fails that need only converge as fast as one process, '' if it passes."""
    if num_models > 1 or convergence >= MIN_CONVERGENCE:
        return different_models(num_models)
    return (
        f"its held-out loss fell {convergence:.2f} times as far as one process's on the concatenated batches "
        f"(at least {MIN_CONVERGENCE})"
    )


def gate_steps(config: RunConfig) -> int:
    """Number of steps after which the weights are compared."""
    return min(config.total_steps, GATE_STEPS)


def reference_config(config: RunConfig, steps: int) -> RunConfig:
    """Return the config of one process that trains on the concatenated batches, in one pass, for `steps` steps.

    In fp16 it takes as many passes as all workers together: whether a product overflows depends on how the batch is
    split, and both must skip the same steps.
    """
    passes = config.num_workers * config.gradient_accumulation if config.precision == "fp16" else 1
    return config.model_copy(
        update={
            **{name: field.default for name, field in STRATEGY_KNOBS.items()},
            "strategy": catalogue.LOCAL.name,
            "num_workers": 1,
            "launcher": "none",
            "batch_size": config.global_batch_size,
            "gradient_accumulation": passes,
            "warmup_steps": 0,
            "steps": steps,
        }
    )


def reference_weights(config: RunConfig, corpus: Corpus, device: torch.device) -> tuple[Weights, Weights]:
    """Train one process on the concatenated batches; return its weights before it and at the gate, on the CPU."""
    initial, model = _train_reference(config, gate_steps(config), corpus, device)
    return initial, snapshot(model)


def convergence(config: RunConfig, held_out: float, corpus: Corpus, device: torch.device) -> float:
    """Return the decrease of a run's held-out loss over that of one process in as many steps (1: equal)."""
    reference = _train_reference(config, config.total_steps, corpus, device)[1]
    untrained = build_model(config, device)
    initial, final = (held_out_loss(config, model, corpus, device) for model in (untrained, reference))
    assert initial is not None
    assert final is not None
    return (initial - held_out) / (initial - final)


def _train_reference(
    config: RunConfig, steps: int, corpus: Corpus, device: torch.device
) -> tuple[Weights, torch.nn.Module]:
    single = reference_config(config, steps)
    model = build_model(single, device)
    initial = snapshot(model)
    strategy = Local(SingleGroup(), single)
    if single.precision == "fp16":
        strategy.scaler.scale *= config.num_workers  # so that each pass has the scale of a worker's
    module = strategy.prepare(model, build_optimizer(single, model))
    for _ in train(single, module, strategy, corpus, device):
        pass
    return initial, model


def snapshot(model: torch.nn.Module) -> Weights:
    """Copy a model's parameters to the CPU."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def checksum(weights: Weights) -> int:
    """Return the CRC-32 of all weights' bytes: workers with bitwise equal weights have equal checksums."""
    crc = 0
    for tensor in weights.values():
        crc = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, crc)
    return crc


def compare(config: RunConfig, weights: Weights, initial: Weights, reference: Weights) -> Verdict:
    """Return the relative L2 distance of the weights from the reference, and its bound.

    Under adamw the key biases of attention are excluded from the distance and have a bound of their own. Softmax is
    invariant to them: their exact gradient is zero, and Adam normalises the rounding noise that remains. Each step
    moves them by at most about learning_rate in an arbitrary direction, so two runs differ by at most twice that.
    """
    difference = {name: weights[name] - reference[name] for name in reference}
    if config.optimizer == "adamw":
        keys = [_extract_key_bias(tensor) for name, tensor in difference.items() if name.endswith("qkv.bias")]
        if float(torch.cat(keys).abs().max()) > 2 * config.learning_rate * gate_steps(config):
            return Verdict(float("inf"), 0.0)
    norm = _norm(reference)
    update = _norm({name: reference[name] - initial[name] for name in reference}) / norm
    return Verdict(_norm(difference) / norm, bound(config, update))


def bound(config: RunConfig, update: float) -> float:
    """Return the largest relative L2 distance that rounding explains.

    `update` is the norm of the reference's total update over the norm of its weights: a relative gradient error e
    changes the weights by e·update.

    - fp32 on the wire and in the arithmetic: 1e-5, and at most a hundredth of the update, so that a run that trains
      too little fails.
    - 16 bits with unit roundoff u: a gradient is rounded about four times (product, wire, sum, mean), and later steps
      start from the changed weights: 16·u of the update. Adam's first steps keep only the sign of a gradient; an error
      of 4·u flips the sign of about that share of the elements, which changes each by twice its length:
      2·sqrt(4·u) of the update.
    - A parameter server that updates returns weights in the wire dtype: one more rounding, u of the weights.
    """
    u = max(UNIT_ROUNDOFF[config.wire_dtype], UNIT_ROUNDOFF[config.precision])
    if u == UNIT_ROUNDOFF["fp32"]:
        return min(FP32_BOUND, update / 100 + u * gate_steps(config))
    of_update = 2 * math.sqrt(4 * u) if config.optimizer == "adamw" else 16 * u
    returned = config.kind.has_servers and config.server_role == "update"
    rounded = returned and config.wire_dtype != "fp32"
    return of_update * update + (UNIT_ROUNDOFF[config.wire_dtype] if rounded else 0.0)


def _extract_key_bias(qkv_bias: Tensor) -> Tensor:
    """Return the key's third of an attention bias and set it to zero there."""
    key = qkv_bias.chunk(3)[1]
    extracted = key.clone()
    key.zero_()
    return extracted


def _norm(tensors: Weights) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))
