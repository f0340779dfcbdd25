"""Knowledge distillation: a smaller model learns the distributions of a larger one, and the data.

Hinton et al. (arXiv:1503.02531): T² · KL(teacher / T ‖ student / T), beside the cross-entropy. The student begins with
layers of its teacher, as DistilBERT (Sanh et al., arXiv:1910.01108).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.config import RunConfig
from bench.edge.prune import blocks
from bench.rank.data import Corpus
from bench.rank.model import GPT
from bench.rank.train import build_optimizer


def student_of(teacher: GPT, n_layer: int) -> GPT:
    """Return a model of `n_layer` blocks, copies of those of the teacher at equal distances, and of its embeddings."""
    student = GPT(teacher.shape.model_copy(update={"n_layer": n_layer}))
    for part in ("wte", "wpe", "ln_f"):
        getattr(student, part).load_state_dict(getattr(teacher, part).state_dict())
    places = torch.linspace(0, teacher.shape.n_layer - 1, n_layer).round().int().tolist()
    for block, place in zip(blocks(student), places, strict=True):
        block.load_state_dict(blocks(teacher)[place].state_dict())
    return student


def distillation_loss(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, share: float) -> Tensor:
    """Return share · T² · KL + (1 − share) · cross-entropy of logits (B, T, V) and targets (B, T), nats per token."""
    learned, wanted = (F.log_softmax(logits.flatten(0, 1) / temperature, -1) for logits in (student, teacher))
    divergence = F.kl_div(learned, wanted, reduction="batchmean", log_target=True) * temperature**2
    return share * divergence + (1 - share) * F.cross_entropy(student.flatten(0, 1), targets.flatten())


def distil(
    teacher: GPT, student: GPT, corpus: Corpus, config: RunConfig, temperature: float, share: float
) -> Iterator[float]:
    """Train `student` for `config.steps` steps and yield each one's loss.

    The learning rate falls to zero along half a cosine, so that the last steps settle.
    """
    optimizer = build_optimizer(config, student.train())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for step in range(config.steps):
        tokens, targets = corpus.batch(config, 0, step)
        with torch.no_grad():
            wanted = teacher.logits(tokens)
        loss = distillation_loss(student.logits(tokens), wanted, targets, temperature, share)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        yield float(loss.detach())
    student.eval()
