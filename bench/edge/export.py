"""A variant as a file: safetensors, with what it takes to build the model again in its metadata.

Integer weights are stored as integers (int4 two per byte), pruned ones as a bit per weight and the values left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import files
from bench.config import BadInput
from bench.edge import prune, quantise, recipe
from bench.edge.libraries import library
from bench.edge.recipe import INT4, PRUNED, Recipe
from bench.rank.model import GPT
from bench.rank.saved import KEY, Saved, check_values
from bench.shape import GPTShape

SUFFIX = ".safetensors"
MOST_PER_BYTE = 8  # weights: those of a pruned matrix that are zero take a bit each


def describe(model: GPT, made: Recipe, data: str | None) -> str:
    """Return the JSON text that a file of either format carries in its metadata."""
    return json.dumps(
        {"shape": model.shape.model_dump(), "widths": prune.widths(model), "recipe": made.name, "data": data}
    )


def write(path: Path, model: GPT, made: Recipe, data: str | None) -> None:
    """Write a model; `made` says how its weights are stored."""
    tensors: dict[str, Tensor] = {}
    layers = prune.linears(model)
    for name, value in model.named_parameters():
        tensors |= _stored(name, value.detach(), made, name.removesuffix(".weight") in layers)
    content = library("safetensors.torch").save(tensors, {KEY: describe(model, made, data)})
    with files.replacing(path) as file:
        file.write(content)


def _stored(name: str, value: Tensor, made: Recipe, is_matrix: bool) -> dict[str, Tensor]:
    """Return the tensors that hold one parameter."""
    if made.quantised and is_matrix:
        parts = {f"{name}:{part}": tensor.contiguous() for part, tensor in _parts(value).items()}
        if made.quantised == INT4:
            parts[f"{name}:qdata"] = quantise.pack(parts[f"{name}:qdata"])
        return parts
    if made.pruned == PRUNED and is_matrix:
        mask = np.packbits((value != 0).numpy())
        return {f"{name}:mask": torch.from_numpy(mask), f"{name}:values": value[value != 0]}
    return {name: value.contiguous()}


def _parts(value: Any) -> dict[str, Tensor]:
    """Return the plain tensors that one of torchao's consists of."""
    names, _ = value.__tensor_flatten__()
    return {name: getattr(value, name) for name in names if getattr(value, name) is not None}


def read(path: Path) -> tuple[Saved, Recipe]:
    """Return the model of a file that `write` wrote, and how it was made; BadInput for any other file.

    Matrices become integers one by one, so that the whole model never is in memory as fp32.
    """
    try:
        with library("safetensors").safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {})[KEY])
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        (made,) = recipe.parse(said["recipe"])
        model = _build(path, said, made, stored)
        data = said["data"] if isinstance(said["data"], str) else None
    except BadInput:
        raise
    except Exception as error:  # the library's own, and whatever a damaged file leads to
        raise BadInput(f"{path}: is no model that psring compress wrote: {' '.join(str(error).split())}") from None
    return Saved(model.eval(), data), made


def _build(path: Path, said: dict[str, Any], made: Recipe, stored: dict[str, Tensor]) -> GPT:
    with torch.device("meta"):
        model = prune.resize(GPT(GPTShape.model_validate(said["shape"])), said["widths"])
    numbers, size = sum(p.numel() for p in model.parameters()), sum(tensor.nbytes for tensor in stored.values())
    if numbers > MOST_PER_BYTE * size:
        raise ValueError(f"its dimensions say {numbers} weights, and it holds {size} bytes")
    layers = prune.linears(model)
    plain = {name: value for name, value in stored.items() if ":" not in name}
    for name, layer in layers.items():
        parts = {key.split(":")[1]: stored.pop(key) for key in list(stored) if key.startswith(f"{name}.weight:")}
        if made.quantised:
            _fill(name, layer, made.quantised, parts)
        elif parts:
            plain[f"{name}.weight"] = _dense(parts, layer.weight.shape)
    check_values(path, plain)
    plain = {name: value.float() for name, value in plain.items()}
    missing, unexpected = model.load_state_dict(plain, strict=False, assign=True)
    wrong = {*unexpected, *missing} - ({f"{name}.weight" for name in layers} if made.quantised else set())
    if wrong:
        raise ValueError(f"{min(wrong)} is missing or not the model's")
    return model


def _fill(name: str, layer: nn.Linear, kind: str, parts: dict[str, Tensor]) -> None:
    """Make a matrix of integers of a layer without values: torchao's type for `kind`, with the stored parts."""
    layer.weight = nn.Parameter(torch.zeros(layer.weight.shape), requires_grad=False)
    quantise.quantise({name: layer}, kind)
    weight: Any = layer.weight
    if kind == INT4:
        parts["qdata"] = quantise.unpack(parts["qdata"])
    expected = {part: (tensor.dtype, *tensor.shape) for part, tensor in _parts(weight).items()}
    if expected != {part: (tensor.dtype, *tensor.shape) for part, tensor in parts.items()}:
        raise ValueError(f"{name}.weight has other parts than {expected}")
    _, how = weight.__tensor_flatten__()
    made = type(weight.data).__tensor_unflatten__(parts, how, weight.shape, weight.stride())
    layer.weight = nn.Parameter(made, requires_grad=False)


def _dense(parts: dict[str, Tensor], shape: torch.Size) -> Tensor:
    bits = np.unpackbits(parts["mask"].numpy(), count=shape.numel()).astype(bool)
    value = torch.zeros(shape.numel())
    value[torch.from_numpy(bits)] = parts["values"]
    return value.view(shape)
