"""What one server holds: its part of the vector in fp32, what workers pushed for it, and the optimizer's state."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from strategies.buffers import FlatLayout, Range, as_bytes
from strategies.parameter_server.plan import Chunk


class Shard:
    """Master weights, gradient and optimizer of some chunks, which lie side by side here.

    Without an optimizer it returns gradients and not weights. `answers`: how many answers to different workers may be
    on their way with different contents.
    """

    def __init__(
        self, layout: FlatLayout, chunks: list[Chunk], optimizer: torch.optim.Optimizer | None,
        num_workers: int, wire_dtype: torch.dtype, answers: int,
    ) -> None:  # fmt: skip
        size = sum(chunk.size for chunk in chunks)
        ends = np.cumsum([chunk.size for chunk in chunks])
        self._spans = [slice(int(end) - chunk.size, int(end)) for chunk, end in zip(chunks, ends, strict=True)]
        self._weights = torch.empty(size)
        self._gradient = torch.empty(size)
        self._pushed = torch.empty(num_workers, size, dtype=wire_dtype)
        self._returned = self._weights if optimizer else self._gradient
        self._in_place = wire_dtype == torch.float32 and answers == 1
        self._answers = self._returned[None] if self._in_place else torch.empty(answers, size, dtype=wire_dtype)
        self._optimizers = [
            self._chunk_optimizer(optimizer, layout, chunk, span) if optimizer else None
            for chunk, span in zip(chunks, self._spans, strict=True)
        ]

    def _chunk_optimizer(
        self, optimizer: torch.optim.Optimizer, layout: FlatLayout, chunk: Chunk, span: slice
    ) -> torch.optim.Optimizer:
        """The same optimizer with the same groups, over the pieces of parameters inside one chunk."""
        pieces = dict(layout.overlapping(chunk.begin, chunk.end))
        index_of = {parameter: index for index, parameter in enumerate(layout.parameters)}
        groups = []
        for group in optimizer.param_groups:
            ranges = [pieces[index_of[p]] for p in group["params"] if index_of[p] in pieces]
            if ranges:
                groups.append({**group, "params": [self._piece(r, span.start - chunk.begin) for r in ranges]})
        return type(optimizer)(groups)  # type: ignore[call-arg]  # every torch.optim class has defaults

    def _piece(self, elements: Range, shift: int) -> nn.Parameter:
        span = slice(elements[0] + shift, elements[1] + shift)
        piece = nn.Parameter(self._weights[span])
        piece.grad = self._gradient[span]
        return piece

    def weights(self, index: int) -> np.ndarray:
        """The bytes of one chunk's master weights."""
        return as_bytes(self._weights[self._spans[index]])

    def pushed(self, index: int, worker: int) -> np.ndarray:
        """The bytes into which a worker's gradient of one chunk is received."""
        return as_bytes(self._pushed[worker, self._spans[index]])

    def answer(self, index: int, which: int = 0) -> np.ndarray:
        """The bytes that are returned for one chunk."""
        return as_bytes(self._answers[which, self._spans[index]])

    def sum(self, index: int) -> None:
        """Let the gradient be the sum of all workers' in fp32, in their order: equal runs end bitwise equal."""
        span = self._spans[index]
        self.take(index, 0)
        for gradient in self._pushed[1:, span]:
            self._gradient[span].add_(gradient)

    def take(self, index: int, worker: int) -> None:
        """Let the gradient be one worker's."""
        span = self._spans[index]
        self._gradient[span].copy_(self._pushed[worker, span])

    def squared_norm(self) -> float:
        """Return the square of the gradient's L2 norm over all chunks, summed in fp64."""
        return float(torch.linalg.vector_norm(self._gradient, dtype=torch.float64)) ** 2

    def step(self, index: int, factor: float) -> None:
        """Multiply the gradient of one chunk by `factor`, and update its weights with that."""
        self._gradient[self._spans[index]] *= factor
        optimizer = self._optimizers[index]
        if optimizer:
            optimizer.step()

    def fill_answer(self, index: int, which: int = 0) -> None:
        """Let an answer be what is returned as it is now, in the wire dtype."""
        if not self._in_place:
            self._answers[which, self._spans[index]] = self._returned[self._spans[index]]
