"""One flat vector for all parameters, and how it is cut into shards and chunks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Range = tuple[int, int]  # begin, end: elements of the flat vector


@dataclass(frozen=True)
class FlatLayout:
    """Where each parameter lives in the flat vector: reverse order of definition, as backward yields them."""

    parameters: tuple[nn.Parameter, ...]
    offsets: tuple[int, ...]
    num_elements: int

    @staticmethod
    def of(model: nn.Module) -> FlatLayout:
        """Lay out a model's parameters; a parameter used twice has one place."""
        parameters = tuple(reversed(list(model.parameters())))
        ends = np.cumsum([p.numel() for p in parameters])
        offsets = (0, *(int(end) for end in ends[:-1]))
        return FlatLayout(parameters, offsets, int(ends[-1]))

    def ranges(self) -> list[Range]:
        """The elements of each parameter, in the order of `parameters`."""
        return [(o, o + p.numel()) for p, o in zip(self.parameters, self.offsets, strict=True)]

    def overlapping(self, begin: int, end: int) -> list[tuple[int, Range]]:
        """Return (index of parameter, elements of the flat vector) for each piece inside [begin, end)."""
        pieces = []
        for index, (first, last) in enumerate(self.ranges()):
            if first < end and begin < last:
                pieces.append((index, (max(first, begin), min(last, end))))
        return pieces

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each parameter's part of a flat buffer, in its shape, in the order of `parameters`."""
        return [flat[begin:end].view(p.shape) for p, (begin, end) in zip(self.parameters, self.ranges(), strict=True)]


class Readiness:
    """Which ranges of the flat vector have got all of their gradients in this step."""

    def __init__(self, layout: FlatLayout, ranges: Sequence[Range]) -> None:
        pieces = [[index for index, _ in layout.overlapping(*span)] for span in ranges]
        self._num_pieces = [len(parameters) for parameters in pieces]
        self._ranges_of: list[list[int]] = [[] for _ in layout.parameters]
        for number, parameters in enumerate(pieces):
            for index in parameters:
                self._ranges_of[index].append(number)
        self.reset()

    def reset(self) -> None:
        """Begin a step: no gradient is there."""
        self._awaited = list(self._num_pieces)
        self._here = [False] * len(self._ranges_of)

    def complete(self, index: int) -> list[int]:
        """Note one parameter's gradient, return the ranges that it was the last for."""
        self._here[index] = True
        for number in self._ranges_of[index]:
            self._awaited[number] -= 1
        return [number for number in self._ranges_of[index] if self._awaited[number] == 0]

    def missing(self) -> list[int]:
        """The parameters whose gradient has not come."""
        return [index for index, here in enumerate(self._here) if not here]


def balanced_ranges(begin: int, end: int, parts: int) -> list[Range]:
    """Cut [begin, end) into `parts` ranges whose lengths differ by at most one element."""
    length = end - begin
    cuts = [begin + length * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(cuts))


def chunk_ranges(begin: int, end: int, max_elements: int) -> list[Range]:
    """Cut [begin, end) into the fewest balanced ranges of at most `max_elements`; none if it is empty."""
    return balanced_ranges(begin, end, -(-(end - begin) // max_elements)) if end > begin else []


def as_bytes(tensor: Tensor) -> np.ndarray:
    """View a contiguous CPU tensor of any dtype as bytes: MPI has no bf16, and auto-typed fp16 raises."""
    return tensor.view(torch.uint8).numpy()


def host_buffer(num_elements: int, dtype: torch.dtype, pinned: bool) -> Tensor:
    """Allocate a CPU buffer, page-locked where a GPU copies to and from it."""
    return torch.empty(num_elements, dtype=dtype, pin_memory=pinned)
