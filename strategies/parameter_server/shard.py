"""What one server holds: its chunks in fp32, the gradients pushed for them, and the optimizer's state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from strategies.buffers import FlatLayout, as_bytes
from strategies.options import Options
from strategies.parameter_server.memory import Messages
from strategies.parameter_server.plan import Chunk
from strategies.parameter_server.update import Settings, Update, updates_maker
from strategies.parameter_server.wire import make_wire


class Shard:
    """Master weights, gradient and optimizer of some chunks.

    Without an optimizer it returns gradients instead of weights; with compression, the change of the weights. `pushes`
    are the buffers of each worker's gradients, `replies` those of what is returned: several, if replies with different
    contents may be in flight to different workers.
    """

    def __init__(
        self, layout: FlatLayout, chunks: list[Chunk], optimizer: torch.optim.Optimizer | None,
        options: Options, pushes: Sequence[Messages], replies: Sequence[Messages],
    ) -> None:  # fmt: skip
        sizes = [chunk.size for chunk in chunks]
        self._pushed = [make_wire(options, messages.each, sizes) for messages in pushes]
        self._replies = [make_wire(options, messages.each, sizes) for messages in replies]
        compressed = options.compression != "none"
        # Weights or gradients that are their own message need no copy.
        self._is_reply = len(replies) == 1 and options.wire_dtype == "fp32" and not compressed
        returned = replies[0].memory.view(torch.float32) if self._is_reply else torch.empty(sum(sizes))
        self._returned_of = torch.split(returned, sizes)
        self._weights_of = self._returned_of if optimizer else torch.split(torch.empty(sum(sizes)), sizes)
        self._gradient_of = self._gradients(sizes, options) if optimizer else self._returned_of
        # The weights that all workers have, if only changes are sent.
        self._replica_of = [torch.empty_like(part) for part in self._weights_of] if optimizer and compressed else None
        self._updates = self._make_updates(optimizer, layout, chunks) if optimizer else []

    def _gradients(self, sizes: Sequence[int], options: Options) -> Sequence[Tensor]:
        """Return where each chunk is summed: one buffer, which stays cached, if each is updated before the next."""
        if options.needs_norm:
            return torch.split(torch.empty(sum(sizes)), list(sizes))
        place = torch.empty(max(sizes))
        return [place[:size] for size in sizes]

    def _make_updates(
        self, optimizer: torch.optim.Optimizer, layout: FlatLayout, chunks: Sequence[Chunk]
    ) -> list[dict[int, Update]]:
        """Return the updates of each chunk by param group."""
        make = updates_maker(optimizer, layout)
        return [
            make((chunk.begin, chunk.end), weights, gradient)
            for chunk, weights, gradient in zip(chunks, self._weights_of, self._gradient_of, strict=True)
        ]

    def change_settings(self, settings: Sequence[Settings]) -> None:
        """Update with other settings of the param groups from now on."""
        for updates in self._updates:
            for number, update in updates.items():
                update.change(settings[number])

    def weights(self, index: int) -> np.ndarray:
        """Return the bytes of one chunk's master weights."""
        return as_bytes(self._weights_of[index])

    def weights_arrived(self) -> None:
        """Note that the initial weights are here, which the workers have, too."""
        for replica, weights in zip(self._replica_of or (), self._weights_of, strict=False):
            replica.copy_(weights)

    def pushed(self, index: int, worker: int) -> np.ndarray:
        """Return the bytes of a worker's gradient of one chunk, as received."""
        return self._pushed[worker].message(index)

    def reply(self, index: int, number: int = 0) -> np.ndarray:
        """Return the bytes of a reply for one chunk."""
        return self._replies[number].message(index)

    def sum(self, index: int) -> None:
        """Set the gradient to the sum of all workers' in fp32, in worker order: equal runs end bitwise equal."""
        parts = [self._pushed_part(index, worker) for worker in range(len(self._pushed))]
        gradient, (first, *others) = self._gradient_of[index], parts
        if others and first.dtype == gradient.dtype:
            torch.add(first, others.pop(0), out=gradient)  # one pass over memory less than a copy and a sum
        else:
            gradient.copy_(first)
        for other in others:
            gradient.add_(other)

    def take(self, index: int, worker: int) -> None:
        """Set the gradient to one worker's."""
        self._gradient_of[index].copy_(self._pushed_part(index, worker))

    def _pushed_part(self, index: int, worker: int) -> Tensor:
        self._pushed[worker].unpack(index)
        return self._pushed[worker].parts[index]

    def squared_norm(self) -> float:
        """Return the square of the gradient's L2 norm over all chunks, summed in fp64."""
        return sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in self._gradient_of)

    def step(self, index: int, factor: float) -> None:
        """Update a chunk by its gradient times `factor` (above 0); without an optimizer, only multiply the gradient."""
        if not self._updates:
            self._gradient_of[index].mul_(factor)
            return
        divisor = None if factor == 1.0 else torch.tensor(1 / factor)
        for update in self._updates[index].values():
            update(divisor)

    def fill_reply(self, index: int, number: int = 0) -> None:
        """Write the current weights or gradient to a reply; compressed: how the weights differ from the workers'."""
        wire, returned = self._replies[number], self._returned_of[index]
        if self._replica_of is not None:
            torch.sub(returned, self._replica_of[index], out=wire.parts[index])
            self._replica_of[index].add_(wire.pack(index))
        elif not self._is_reply:
            wire.put(wire.parts[index], returned)
            wire.pack(index)
