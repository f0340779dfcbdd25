"""The gate of runs that do not promise one process's weights (asynchronous, compressed, local steps): they must learn.

Their held-out loss must fall about as far as that of one process that trains on the concatenated batches.
"""

from __future__ import annotations

import torch

from bench.config import MIN_CONVERGENCE, RunConfig
from bench.rank.data import Corpus
from bench.rank.train import build_model, build_optimizer, held_out_loss, train
from strategies import catalogue
from strategies.group import SingleGroup
from strategies.local import Local
from strategies.options import STRATEGY_KNOBS


def convergence(config: RunConfig, held_out: float, corpus: Corpus, device: torch.device) -> float:
    """Return the decrease of a run's held-out loss over that of one process in as many steps (1: equal)."""
    untrained, reference = build_model(config, device), _train_reference(config, corpus, device)
    initial, final = (held_out_loss(config, model, corpus, device) for model in (untrained, reference))
    assert initial is not None
    assert final is not None
    return (initial - held_out) / (initial - final)


def convergence_failure(convergence: float) -> str:
    """Return why a run fails in one line, '' if it passes."""
    if convergence >= MIN_CONVERGENCE:
        return ""
    return (
        f"its held-out loss fell {convergence:.2f} times as far as one process's on the concatenated batches "
        f"(at least {MIN_CONVERGENCE})"
    )


def _train_reference(config: RunConfig, corpus: Corpus, device: torch.device) -> torch.nn.Module:
    single = reference_config(config)
    model = build_model(single, device)
    strategy = Local(SingleGroup(), single)
    if single.precision == "fp16":
        strategy.scaler.scale *= config.num_replicas  # so that each pass has the scale of a worker's
    module = strategy.prepare(model, build_optimizer(single, model))
    for _ in train(single, module, strategy, corpus, device):
        pass
    return model


def reference_config(config: RunConfig) -> RunConfig:
    """Return the config of one process that trains on the concatenated batches, in one pass.

    In fp16 it takes as many passes as all workers together: whether a product overflows depends on how the batch is
    split, and both must skip the same steps.
    """
    passes = config.num_replicas * config.gradient_accumulation if config.precision == "fp16" else 1
    return config.model_copy(
        update={
            **{name: field.default for name, field in STRATEGY_KNOBS.items()},
            "strategy": catalogue.LOCAL.name,
            "num_workers": 1,
            "launcher": "none",
            "batch_size": config.global_batch_size,
            "gradient_accumulation": passes,
            "warmup_steps": 0,
            "steps": config.total_steps,
        }
    )
