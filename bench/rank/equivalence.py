"""The gate before any comparison: did this topology train the model that one process would have trained?

A run that does not promise that (asynchronous, compressed, or with steps alone) must have learned about as much.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.config import GATE_STEPS, LEAST_CONVERGENCE, RunConfig
from bench.rank.data import Corpus
from bench.rank.train import build_model, build_optimizer, held_out_loss, train
from strategies import catalogue
from strategies.group import SingleGroup
from strategies.local import Local

Weights = dict[str, Tensor]

# 2^-p of a format with p significant bits: the largest relative error of rounding to it once.
UNIT_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
FP32_BOUND = 1e-5


@dataclass(frozen=True)
class Verdict:
    """How far the weights are from the reference, relative L2, and how far they may be."""

    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the run trained the reference's model."""
        return self.error <= self.bound

    def complaint(self, different_workers: int) -> str:
        """Say in one line what is wrong with the trained model, nothing if nothing is."""
        if different_workers > 1 or self.passed:
            return different_models(different_workers)
        off = f"equivalence error {self.error:.2g}, bound {self.bound:.2g}"
        return f"it trained another model than one process on the concatenated batches ({off})"


def different_models(workers: int) -> str:
    """Say that so many different models came out of one run, nothing if it was one."""
    return f"the workers ended with {workers} different models" if workers > 1 else ""


def slow_complaint(convergence: float, different_workers: int) -> str:
    """Say in one line what is wrong with a run that promised to learn as well, nothing if nothing is."""
    if different_workers > 1 or convergence >= LEAST_CONVERGENCE:
        return different_models(different_workers)
    return (
        f"its held-out loss fell {convergence:.2f} times as far as one process's on the concatenated batches "
        f"(at least {LEAST_CONVERGENCE})"
    )


def gate_steps(config: RunConfig) -> int:
    """After how many steps the weights are compared."""
    return min(config.total_steps, GATE_STEPS)


def reference_config(config: RunConfig, steps: int) -> RunConfig:
    """One worker that sees the workers' batches as one, in one pass, for so many steps.

    Except in fp16, whose products overflow or not depending on how a batch is cut: there the one worker
    takes the same passes as the many, so that both skip the same steps.
    """
    passes = config.num_workers * config.gradient_accumulation if config.precision == "fp16" else 1
    return config.model_copy(
        update={
            "strategy": catalogue.LOCAL.name,
            "num_workers": 1,
            "num_servers": 0,
            "placement": "dedicated",
            "consistency": "bsp",
            "staleness": 0,
            "compression": "none",
            "sync_every": 1,
            "launcher": "none",
            "batch_size": config.global_batch_size,
            "gradient_accumulation": passes,
            "wire_dtype": "fp32",
            "warmup_steps": 0,
            "steps": steps,
        }
    )


def reference_weights(config: RunConfig, corpus: Corpus, device: torch.device) -> tuple[Weights, Weights]:
    """Train one process on the concatenated batches; return its (initial, gated) weights on the CPU."""
    initial, model = _train_reference(config, gate_steps(config), corpus, device)
    return initial, snapshot(model)


def convergence(config: RunConfig, held_out: float, corpus: Corpus, device: torch.device) -> float:
    """Return how much a run's held-out loss has fallen, relative to one process's in as many steps; 1 is as much."""
    reference = _train_reference(config, config.total_steps, corpus, device)[1]
    untrained = build_model(config, device)
    began, ended = (held_out_loss(config, model, corpus, device) for model in (untrained, reference))
    assert began is not None
    assert ended is not None
    return (began - held_out) / (began - ended)


def _train_reference(
    config: RunConfig, steps: int, corpus: Corpus, device: torch.device
) -> tuple[Weights, torch.nn.Module]:
    alone = reference_config(config, steps)
    model = build_model(alone, device)
    initial = snapshot(model)
    strategy = Local(SingleGroup(), alone)
    if alone.precision == "fp16":
        strategy.scaler.scale *= config.num_workers  # each pass is then scaled as a worker scales it
    module = strategy.prepare(model, build_optimizer(alone, model))
    for _ in train(alone, module, strategy, corpus, device):
        pass
    return initial, model


def snapshot(model: torch.nn.Module) -> Weights:
    """Copy a model's parameters to the CPU."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def checksum(weights: Weights) -> int:
    """CRC-32 of all weights' bytes: equal on two workers only if every bit is."""
    crc = 0
    for tensor in weights.values():
        crc = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, crc)
    return crc


def compare(config: RunConfig, weights: Weights, initial: Weights, reference: Weights) -> Verdict:
    """Return the relative L2 distance of the weights from the reference, and its bound.

    Under adamw the key biases of attention are left out of the distance and bounded by themselves. Softmax
    does not see them: their gradient is zero in exact arithmetic, and Adam divides the rounding noise that
    is left by its own size. Each step moves them by about learning_rate in a direction that means nothing,
    so two runs may part by twice that per step, and by no more.
    """
    apart = {name: weights[name] - reference[name] for name in reference}
    if config.optimizer == "adamw":
        keys = [_take_key_bias(difference) for name, difference in apart.items() if name.endswith("qkv.bias")]
        if float(torch.cat(keys).abs().max()) > 2 * config.learning_rate * gate_steps(config):
            return Verdict(float("inf"), 0.0)
    size = _norm(reference)
    update = _norm({name: reference[name] - initial[name] for name in reference}) / size
    return Verdict(_norm(apart) / size, bound(config, update))


def bound(config: RunConfig, update: float) -> float:
    """Return the largest relative L2 distance that rounding explains.

    `update` is the length of the reference's whole update relative to its weights: gradients that are off by
    a share e move the weights by e·update.

    - fp32 on the wire and in the arithmetic: 1e-5, and never more than a hundredth of the update, so that
      training too little cannot pass.
    - 16 bits with unit roundoff u: a gradient is rounded about four times (product, wire, sum, mean), and
      the steps that follow start from where it led: 16·u of the update. Adam keeps only the sign of a
      gradient that has not yet a history, and an error of 4·u turns the sign of about that share of the
      elements, twice their length each: 2·sqrt(4·u) of the update.
    - A parameter server that updates returns weights in the wire dtype: one more rounding, u of the weights.
    """
    u = max(UNIT_ROUNDOFF[config.wire_dtype], UNIT_ROUNDOFF[config.precision])
    if u == UNIT_ROUNDOFF["fp32"]:
        return min(FP32_BOUND, update / 100 + u * gate_steps(config))
    of_update = 2 * math.sqrt(4 * u) if config.optimizer == "adamw" else 16 * u
    returned = config.kind.has_servers and config.server_role == "update"
    served = returned and config.wire_dtype != "fp32"
    return of_update * update + (UNIT_ROUNDOFF[config.wire_dtype] if served else 0.0)


def _take_key_bias(qkv_bias: Tensor) -> Tensor:
    """Cut the key's third out of an attention bias, leaving zeros."""
    key = qkv_bias.chunk(3)[1]
    taken = key.clone()
    key.zero_()
    return taken


def _norm(tensors: Weights) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))
