"""Integer weights by torchao: of every matrix in the blocks, not of embeddings (which are also the output head)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.config import BadInput
from bench.edge.libraries import library
from bench.edge.recipe import INT4, INT8, INT8_DYNAMIC

GROUP = 32  # weights that share a scale, of int4


def quantise(layers: dict[str, nn.Linear], kind: str) -> None:
    """Replace the weights of layers by integers; `kind` is one of the recipe's. BadInput if torchao cannot."""
    ao = library("torchao.quantization")
    for name, layer in layers.items():
        try:
            ao.quantize_(layer, _config(ao, kind, layer.in_features))
        except (RuntimeError, NotImplementedError, ValueError, AssertionError, ImportError) as error:
            raise BadInput(f"{kind}: torchao cannot quantise {name} here: {' '.join(str(error).split())}") from None


def _config(ao: Any, kind: str, in_features: int) -> Any:
    if kind == INT8_DYNAMIC:
        return ao.Int8DynamicActivationInt8WeightConfig()
    if kind == INT8:
        return ao.Int8WeightOnlyConfig()
    assert kind == INT4
    group = next(size for size in (GROUP, 16, 8, 4, 2, 1) if in_features % size == 0)
    granularity = library("torchao.quantization.granularity").PerGroup(group)
    four_bits = torch.int4  # type: ignore[attr-defined]
    return ao.IntxWeightOnlyConfig(weight_dtype=four_bits, granularity=granularity)


def pack(values: Tensor) -> Tensor:
    """Return int4 values, one per int8, as two per byte: (…, n) -> (…, n / 2)."""
    low, high = values[..., 0::2], values[..., 1::2]
    return (low & 0xF | high << 4).contiguous()


def unpack(packed: Tensor) -> Tensor:
    """Return what `pack` was given."""
    return torch.stack([packed << 4 >> 4, packed >> 4], -1).flatten(-2)
