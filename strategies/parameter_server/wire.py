"""The numbers of a rank's chunks, and the messages in which they travel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from strategies.base import torch_dtype
from strategies.buffers import as_bytes
from strategies.options import Options
from strategies.parameter_server.compression import Codec, make_codec


class Wire(ABC):
    """One end of a stream of chunks: its owner writes or reads `parts`, the other end does so with `message(i)`.

    Views are made once: for small chunks they would cost as much as sums.
    """

    def __init__(self, parts: Sequence[Tensor], messages: Sequence[Tensor]) -> None:
        self.parts = list(parts)
        self._messages = [as_bytes(message) for message in messages]

    def message(self, index: int) -> np.ndarray:
        """The bytes that say a chunk; always the same memory."""
        return self._messages[index]

    @abstractmethod
    def put(self, place: Tensor, values: Tensor) -> None:
        """Write values to send into a part, or a piece of one."""

    @abstractmethod
    def pack(self, index: int) -> Tensor:
        """Make a chunk's message from its part; return what its receiver will read there."""

    @abstractmethod
    def unpack(self, index: int) -> None:
        """Make a chunk's part from its message."""


class Dense(Wire):
    """The numbers themselves travel, in the wire dtype. Sent ones are their own message; so may received ones be."""

    def __init__(self, parts: Sequence[Tensor], messages: Sequence[Tensor]) -> None:
        super().__init__(parts, messages)
        said = [message.view(part.dtype) for part, message in zip(parts, messages, strict=True)]
        apart = [part.data_ptr() != message.data_ptr() for part, message in zip(parts, messages, strict=True)]
        self._elsewhere = [there if yes else None for there, yes in zip(said, apart, strict=True)]

    def put(self, place: Tensor, values: Tensor) -> None:
        """Round to the wire dtype."""
        if place.dtype == values.dtype == torch.float32 and not values.is_cuda:
            np.copyto(place.numpy(), values.numpy())  # C's memcpy: unlike torch's loop it reads only what it copies
        else:
            place.copy_(values)

    def pack(self, index: int) -> Tensor:
        """Nothing is left to do."""
        return self.parts[index]

    def unpack(self, index: int) -> None:
        """Fetch what was said where its sender has it."""
        said = self._elsewhere[index]
        if said is not None:
            self.parts[index].copy_(said)


class Compressed(Wire):
    """Sends what a codec makes of the numbers, and owes the rest: error feedback.

    A sender's parts (fp32) hold all that was put and not yet said, so that what one message leaves out the next ones
    say: nothing is lost. A receiver's are overwritten; one that `adds` receives changes and sums them up.
    """

    def __init__(self, codec: Codec, parts: Sequence[Tensor], messages: Sequence[Tensor], adds: bool) -> None:
        super().__init__(parts, messages)
        self._encoded = list(messages)
        self._codec = codec
        self._adds = adds
        self._said = torch.empty(max(len(part) for part in parts))

    def put(self, place: Tensor, values: Tensor) -> None:
        """Owe it, too."""
        place.add_(values.to(place))

    def pack(self, index: int) -> Tensor:
        """Say what fits, and owe the rest."""
        owed = self.parts[index]
        self._codec.encode(owed, self._encoded[index])
        said = self._decoded(index)
        owed.sub_(said)
        return said

    def unpack(self, index: int) -> None:
        """Take over what was said."""
        into = self.parts[index]
        into.copy_(into + self._decoded(index) if self._adds else self._decoded(index))

    def _decoded(self, index: int) -> Tensor:
        said = self._said[: len(self.parts[index])]
        self._codec.decode(self._encoded[index], said)
        return said


def make_wire(
    options: Options, messages: Sequence[Tensor], sizes: Sequence[int], flat: Tensor | None = None, adds: bool = False
) -> Wire:
    """One end of a stream in the form that a run asks for, of chunks of so many elements.

    `flat` holds its owner's numbers side by side; without it the messages themselves do, if they are not compressed.
    """
    codec = make_codec(options)
    if codec:
        return Compressed(
            codec, torch.split(torch.zeros(sum(sizes)) if flat is None else flat, list(sizes)), messages, adds
        )
    if flat is None:
        return Dense([message.view(torch_dtype(options.wire_dtype)) for message in messages], messages)
    return Dense(torch.split(flat, list(sizes)), messages)
