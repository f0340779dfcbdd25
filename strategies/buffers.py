"""One flat vector for all parameters, and how it is cut into shards and chunks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from strategies.options import MAX_MESSAGE_BYTES

Range = tuple[int, int]  # begin, end: elements of the flat vector


@dataclass(frozen=True)
class FlatLayout:
    """Where each parameter lies in the flat vector: in reverse order of definition, as backward finishes them."""

    parameters: tuple[nn.Parameter, ...]
    offsets: tuple[int, ...]
    num_elements: int

    @staticmethod
    def of(model: nn.Module) -> FlatLayout:
        """Lay out the parameters that require a gradient; one that is used twice has one place.

        ValueError if there are none, or one is not real.
        """
        parameters = tuple(reversed([p for p in model.parameters() if p.requires_grad]))
        if not parameters or not all(p.is_floating_point() for p in parameters):
            raise ValueError("the model must have parameters to train, all of them real floating-point numbers")
        ends = np.cumsum([p.numel() for p in parameters])
        offsets = (0, *(int(end) for end in ends[:-1]))
        return FlatLayout(parameters, offsets, int(ends[-1]))

    def ranges(self) -> list[Range]:
        """Return the elements of each parameter, in the order of `parameters`."""
        return [(o, o + p.numel()) for p, o in zip(self.parameters, self.offsets, strict=True)]

    def overlapping(self, begin: int, end: int) -> list[tuple[int, Range]]:
        """Return (index of parameter, elements of the flat vector) for each piece inside [begin, end)."""
        pieces = []
        for index, (first, last) in enumerate(self.ranges()):
            if first < end and begin < last:
                pieces.append((index, (max(first, begin), min(last, end))))
        return pieces

    def parameters_in(self, ranges: Sequence[Range]) -> list[list[int]]:
        """Return, for each range of the flat vector, the indices of the parameters that overlap it."""
        return [[index for index, _ in self.overlapping(*span)] for span in ranges]

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return each parameter's part of a flat buffer, in its shape, in the order of `parameters`."""
        return [flat[begin:end].view(p.shape) for p, (begin, end) in zip(self.parameters, self.ranges(), strict=True)]


class Readiness:
    """Counts, for each range of the flat vector, the gradients of this step that are still missing."""

    def __init__(self, layout: FlatLayout, ranges: Sequence[Range]) -> None:
        parameters_of = layout.parameters_in(ranges)
        self._num_parameters = [len(indices) for indices in parameters_of]
        self._ranges_of: list[list[int]] = [[] for _ in layout.parameters]
        for number, indices in enumerate(parameters_of):
            for index in indices:
                self._ranges_of[index].append(number)
        self.reset()

    def reset(self) -> None:
        """Begin a step: every gradient is missing."""
        self._num_missing = list(self._num_parameters)
        self._is_ready = [False] * len(self._ranges_of)

    def complete(self, index: int) -> list[int]:
        """Note that a parameter's gradient is ready; return the ranges that it was the last for."""
        self._is_ready[index] = True
        completed = []
        for number in self._ranges_of[index]:
            self._num_missing[number] -= 1
            if self._num_missing[number] == 0:
                completed.append(number)
        return completed

    def missing(self) -> list[int]:
        """Return the indices of the parameters whose gradient is not ready."""
        return [index for index, ready in enumerate(self._is_ready) if not ready]


def balanced_ranges(begin: int, end: int, parts: int) -> list[Range]:
    """Cut [begin, end) into `parts` ranges whose lengths differ by at most one element."""
    length = end - begin
    cuts = [begin + length * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(cuts))


def chunk_ranges(begin: int, end: int, max_elements: int) -> list[Range]:
    """Cut [begin, end) into the fewest balanced ranges of at most `max_elements`; no range if it is empty."""
    return balanced_ranges(begin, end, -(-(end - begin) // max_elements)) if end > begin else []


def as_bytes(tensor: Tensor) -> np.ndarray:
    """Return a contiguous CPU tensor of any dtype viewed as bytes: MPI has no bf16, and mpi4py rejects fp16."""
    return tensor.view(torch.uint8).numpy()


def pieces(buffer: np.ndarray, max_bytes: int = MAX_MESSAGE_BYTES) -> list[np.ndarray]:
    """Return consecutive parts of a buffer of bytes, each small enough for one message."""
    return [buffer[begin : begin + max_bytes] for begin in range(0, len(buffer), max_bytes)]


def host_buffer(num_elements: int, dtype: torch.dtype, pinned: bool) -> Tensor:
    """Return a CPU buffer, page-locked if a GPU copies to and from it."""
    return torch.empty(num_elements, dtype=dtype, pin_memory=pinned)
