"""A file of trained weights: a plain state dict, as torch.save writes it, whose metadata say what it takes to use it.

`state_dict()` of any module has `_metadata`, a dict per submodule; here the root's holds the model's shape and data.
Whoever only wants the weights sees a dict of tensors.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from pydantic import ValidationError
from torch import Tensor

from bench import files
from bench.config import BadInput, first_problem
from bench.rank.model import GPT
from bench.shape import PRESETS, GPTShape

KEY = "psring"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BYTES_VOCABULARY = 256  # tokens below it are bytes


@dataclass(frozen=True)
class Saved:
    """A trained GPT and the `data` that it was trained on (a knob of RunConfig; None if the file does not say)."""

    model: GPT
    data: str | None

    @property
    def reads_bytes(self) -> bool:
        """Whether its tokens are bytes."""
        return self.model.shape.vocab_size == BYTES_VOCABULARY


def write(path: Path, weights: Mapping[str, Tensor], shape: GPTShape, data: str) -> None:
    """Write weights by the names of GPT's parameters, with the shape of the model and the data it was trained on."""
    state = OrderedDict(weights)
    state._metadata = {"": {KEY: {"shape": shape.model_dump(), "data": data}}}  # type: ignore[attr-defined]
    with files.replacing(path) as file:
        torch.save(state, file)


def read(path: Path, n_head: int | None = None) -> Saved:
    """Return the GPT of a file that `write` wrote; BadInput if it holds anything else.

    Weights do not show the number of heads: without metadata, `n_head` or the preset of the same dimensions gives it.
    """
    weights = _read_weights(path)
    found = _said(weights)
    shape = _shape_of(path, weights, found.get("shape"), n_head)
    with torch.device("meta"):
        model = GPT(shape)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | given.keys()):
        if given.get(name) != expected.get(name):
            _refuse(path, f"{name} has the shape {given.get(name, 'of nothing')}, not {expected.get(name, 'any')}")
    check_values(path, weights)
    model.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    data = found.get("data")
    return Saved(model.eval(), data if isinstance(data, str) else None)


def check_values(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise BadInput for weights that are no dense floating-point numbers, or not finite in fp32."""
    for name, value in weights.items():
        if value.dtype not in DTYPES or value.layout != torch.strided or value.device.type != "cpu":
            kind = f"{value.dtype}".removeprefix("torch.")
            _refuse(path, f"{name} holds {kind} ({value.layout}, on {value.device}), not dense fp32, fp16 or bf16")
        if not torch.isfinite(value.float()).all():
            _refuse(path, f"{name} is not finite: the training diverged; train with a lower --learning-rate")


def _said(weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """Return what the root's metadata say of the model; nothing if they are anything else than `write` wrote."""
    found: Any = getattr(weights, "_metadata", None)
    for key in ("", KEY):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file; psring run --save-parameters {path} trains one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # its unpickler raises whatever a damaged file leads to
        _refuse(path, "torch.load cannot read it")
    pairs = state.items() if isinstance(state, Mapping) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in pairs):
        _refuse(path, "it is no state dict")
    weights: Mapping[str, Tensor] = state
    return weights


def _shape_of(path: Path, weights: Mapping[str, Tensor], said: Any, n_head: int | None) -> GPTShape:
    """Return the model's dimensions: those that the file says, else those of its weights."""
    if said is not None:
        try:
            shape = GPTShape.model_validate(said)
        except ValidationError as error:
            _refuse(path, f"its dimensions cannot be read ({first_problem(error, GPTShape.model_fields)})")
        if n_head is not None and n_head != shape.n_head:
            raise BadInput(f"--n-head: {path} says that its model has {shape.n_head} heads; leave --n-head out")
        return shape
    embeddings = [weights[name].shape for name in ("wte.weight", "wpe.weight") if name in weights]
    if len(embeddings) < 2 or any(len(shape) != 2 for shape in embeddings):
        _refuse(path, "there is no wte.weight and wpe.weight of two dimensions")
    (vocab_size, n_embd), (block_size, _) = embeddings
    n_layer = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    same = [s for s in PRESETS.values() if (s.n_layer, s.n_embd) == (n_layer, n_embd)]
    heads = n_head or (same[0].n_head if same else None)
    if not heads or n_embd % heads:
        raise BadInput(f"{path}: weights do not show the number of heads; give --n-head, a divisor of n_embd: {n_embd}")
    try:
        return GPTShape(n_layer=n_layer, n_head=heads, n_embd=n_embd, vocab_size=vocab_size, block_size=block_size)
    except ValidationError as error:
        _refuse(path, f"its dimensions are impossible ({first_problem(error, GPTShape.model_fields)})")


def _refuse(path: Path, why: str) -> NoReturn:
    raise BadInput(f"{path}: is no GPT that psring trained: {why}; psring run --save-parameters FILE writes one")
