"""The models of the published measurements: their weight matrices in the order of forward, and FLOPs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.config import BadInput, nearest, read_yaml, shorten

FILE = Path(__file__).parent / "models.yaml"
MAX_TENSORS, MAX_SIZE, MAX_WIDTH = 10_000, 10**12, 1 << 20
TOLERANCE = 0.02  # of the sum of the tensors against the published number of parameters


@dataclass(frozen=True)
class Tensor:
    """A weight matrix: its elements, and how often one sample of `tokens` tokens is multiplied by it."""

    size: int
    positions: int
    per_token: bool

    def forward_flops(self, tokens: int) -> float:
        """FLOPs of one sample's forward."""
        return 2.0 * self.size * self.positions * (tokens if self.per_token else 1)


@dataclass(frozen=True)
class Model:
    """A published model: its tensors in the order of forward, and the number of parameters that its source gives."""

    name: str
    source: str
    parameters: float
    tensors: tuple[Tensor, ...]
    attention: tuple[int, int] = (0, 0)  # layers and width

    @property
    def size(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def largest(self) -> int:
        """Elements of the largest tensor."""
        return max(tensor.size for tensor in self.tensors)

    def forward_flops(self, tokens: int) -> float:
        """FLOPs of one sample's forward; backward takes twice as many."""
        layers, width = self.attention
        scores = 4.0 * layers * width * tokens * tokens  # QK^T, and its softmax times V
        return scores + sum(tensor.forward_flops(tokens) for tensor in self.tensors)


def find(name: str, models: dict[str, Model]) -> Model:
    """Return a model by its name; BadInput if there is none."""
    if name not in models:
        raise BadInput(f"model: there is no {name!r}{nearest(name, list(models))}; known are {', '.join(models)}")
    return models[name]


@cache
def built_in() -> dict[str, Model]:
    """Return the models of models.yaml."""
    return parse(read_yaml(FILE), FILE.name)


def parse(given: Any, where: str) -> dict[str, Model]:
    """Return the models of a section {name: {source, parameters, tensors}}; BadInput if it is anything else."""
    if not isinstance(given, dict):
        raise BadInput(f"{where}: models is not a table of name: {{source, parameters, tensors}}")
    return {str(name): _model(str(name), fields, f"{where}: {name}") for name, fields in given.items()}


def _model(name: str, fields: Any, where: str) -> Model:
    if not isinstance(fields, dict) or set(fields) - {"attention"} != {"source", "parameters", "tensors"}:
        raise BadInput(f"{where}: a model has source, parameters, tensors, perhaps attention, and nothing else")
    attention = fields.get("attention", [0, 0])
    if not isinstance(attention, list) or [type(each) for each in attention] != [int, int]:
        raise BadInput(f"{where}: attention is [layers, width]")
    if not all(0 <= each <= MAX_WIDTH for each in attention):
        raise BadInput(f"{where}: attention {attention}: layers and width are from 0 to {MAX_WIDTH}")
    try:
        parameters = float(fields["parameters"])
    except (TypeError, ValueError):
        raise BadInput(f"{where}: parameters {fields['parameters']!r} is not a number; write 25.6e6") from None
    tensors = tuple(_tensors(fields["tensors"], where))
    if not tensors:
        raise BadInput(f"{where}: tensors is empty; list at least one, such as 2048x1000 @1")
    size = sum(tensor.size for tensor in tensors)
    if not abs(parameters / size - 1) <= TOLERANCE:
        raise BadInput(f"{where}: tensors have {size:g} elements and parameters is {parameters:g}; they must agree")
    return Model(name, str(fields["source"]), parameters, tensors, (attention[0], attention[1]))


def _tensors(given: Any, where: str) -> list[Tensor]:
    """Return the tensors of a list with groups {times, of}, repeated."""
    if not isinstance(given, list):
        raise BadInput(f"{where}: tensors is not a list; write - 2048x1000 @1")
    found: list[Tensor] = []
    for each in given:
        if isinstance(each, dict):
            times = each.get("times")
            if set(each) != {"times", "of"} or type(times) is not int or not 1 <= times <= MAX_TENSORS:
                raise BadInput(f"{where}: a group of tensors is {{times: 3, of: [...]}}")
            group = _tensors(each["of"], where)
            _check_number(len(found) + len(group) * times, where)
            found += group * times
        else:
            found.append(_tensor(str(each), where))
    _check_number(len(found), where)
    return found


def _check_number(tensors: int, where: str) -> None:
    if tensors > MAX_TENSORS:
        raise BadInput(f"{where}: {tensors} tensors; at most {MAX_TENSORS} are read")


def _tensor(text: str, where: str) -> Tensor:
    """'3x3x64x64 @56x56' -> its Tensor."""
    parts = re.fullmatch(r"([1-9]\d{0,11}(?:x[1-9]\d{0,11})*) @(tokens|\d{1,9}(?:x\d{1,9})*)", text.strip(), re.ASCII)
    if parts is None:
        raise BadInput(
            f"{where}: {shorten(text)} is no tensor; write its shape and positions: 3x3x64x64 @56x56, 768x768 @tokens"
        )
    per_token = parts[2] == "tokens"
    found = Tensor(_product(parts[1]), 1 if per_token else _product(parts[2]), per_token)
    if max(found.size, found.positions) > MAX_SIZE:
        raise BadInput(f"{where}: {shorten(text)} has more than {MAX_SIZE:g} elements or positions")
    return found


def _product(text: str) -> int:
    return math.prod(map(int, text.split("x")))
