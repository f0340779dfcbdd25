"""Magnitude pruning: of single weights, which leaves matrices as large, and of heads and neurons, which shrinks them.

Han et al. (arXiv:1506.02626) for weights; Michel et al. (arXiv:1905.10650) for heads, here by magnitude.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from bench.rank.model import GPT, Block

Width = tuple[int, int]  # heads, MLP neurons


def linears(model: GPT) -> dict[str, nn.Linear]:
    """Return the matrices of all blocks by name: what is pruned and quantised. Embeddings stay as they are."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def mask_smallest(model: GPT, sparsity: float) -> None:
    """Set the smallest `sparsity` of all blocks' weights to zero, all matrices together, and hold them there."""
    layers = [(module, "weight") for module in linears(model).values()]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=sparsity)


def settle(model: GPT) -> None:
    """Make masks permanent: zeros are zeros, and every weight is a parameter again."""
    for module in linears(model).values():
        if prune.is_pruned(module):
            prune.remove(module, "weight")  # type: ignore[no-untyped-call]


def widths(model: GPT) -> list[Width]:
    """Return every block's heads and MLP neurons."""
    return [(block.attention.n_head, block.fc.out_features) for block in blocks(model)]


def blocks(model: GPT) -> list[Block]:
    """Return the blocks of a model."""
    return [block for block in model.blocks if isinstance(block, Block)]


def resize(model: GPT, sizes: Sequence[Width]) -> GPT:
    """Return the model with new matrices for other numbers of heads and neurons; their values are not set."""
    head, width = model.shape.n_embd // model.shape.n_head, model.shape.n_embd
    for block, (heads, neurons) in zip(blocks(model), sizes, strict=True):
        if (heads, neurons) != (block.attention.n_head, block.fc.out_features):
            block.attention.n_head = heads
            block.attention.qkv = nn.Linear(width, 3 * heads * head)
            block.attention.proj = nn.Linear(heads * head, width)
            block.fc = nn.Linear(width, neurons)
            block.proj = nn.Linear(neurons, width)
    return model


@torch.no_grad()
def remove_smallest(model: GPT, sparsity: float) -> GPT:
    """Return a smaller model: of every block the heads and neurons whose weights have the largest norms."""
    head = model.shape.n_embd // model.shape.n_head
    kept = [(_share(heads, sparsity), _share(neurons, sparsity)) for heads, neurons in widths(model)]
    smaller = resize(copy.deepcopy(model), kept)
    for old, new, (heads, neurons) in zip(blocks(model), blocks(smaller), kept, strict=True):
        rows = old.attention.qkv.weight.view(3, old.attention.n_head, head, -1)  # (3, H, C/H, C)
        columns = old.attention.proj.weight.view(-1, old.attention.n_head, head)  # (C, H, C/H)
        best = _largest(rows.square().sum((0, 2, 3)) + columns.square().sum((0, 2)), heads)
        new.attention.qkv.weight.copy_(rows[:, best].reshape(3 * heads * head, -1))
        new.attention.qkv.bias.copy_(old.attention.qkv.bias.view(3, -1, head)[:, best].flatten())
        new.attention.proj.weight.copy_(columns[:, best].flatten(1))
        new.attention.proj.bias.copy_(old.attention.proj.bias)
        best = _largest(old.fc.weight.square().sum(1) + old.proj.weight.square().sum(0), neurons)
        new.fc.weight.copy_(old.fc.weight[best])
        new.fc.bias.copy_(old.fc.bias[best])
        new.proj.weight.copy_(old.proj.weight[:, best])
        new.proj.bias.copy_(old.proj.bias)
    return smaller


def _share(count: int, sparsity: float) -> int:
    return max(1, round(count * (1 - sparsity)))


def _largest(values: Tensor, count: int) -> Tensor:
    return values.topk(count).indices.sort().values
