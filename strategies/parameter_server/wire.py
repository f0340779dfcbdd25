"""Encoding and decoding: the numbers of a rank's chunks, and the messages that carry them."""

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
    """One end of a stream of chunks: this rank writes or reads `parts`, and MPI the bytes of `message(i)`.

    Views are made once: for small chunks, making one would cost as much as a sum.
    """

    def __init__(self, parts: Sequence[Tensor], messages: Sequence[Tensor]) -> None:
        self.parts = list(parts)
        self._messages = [as_bytes(message) for message in messages]

    def message(self, index: int) -> np.ndarray:
        """Return the bytes of a chunk's message; always the same memory."""
        return self._messages[index]

    @abstractmethod
    def put(self, place: Tensor, values: Tensor) -> None:
        """Write values to send into a part, or a view of one."""

    @abstractmethod
    def pack(self, index: int) -> Tensor:
        """Encode a chunk's part in its message; return what the receiver will decode."""

    @abstractmethod
    def unpack(self, index: int) -> None:
        """Decode a chunk's message into its part."""


class Dense(Wire):
    """Uncompressed numbers in the wire dtype. A part that is sent is its own message; a received one may be."""

    def __init__(self, parts: Sequence[Tensor], messages: Sequence[Tensor]) -> None:
        super().__init__(parts, messages)
        self._to_copy = [
            message.view(part.dtype) if message.data_ptr() != part.data_ptr() else None
            for part, message in zip(parts, messages, strict=True)
        ]

    def put(self, place: Tensor, values: Tensor) -> None:
        """Round to the wire dtype."""
        if place.dtype == values.dtype == torch.float32 and not values.is_cuda:
            np.copyto(place.numpy(), values.numpy())  # C's memcpy: unlike torch's loop it reads only what it copies
        else:
            place.copy_(values)

    def pack(self, index: int) -> Tensor:
        """Do nothing: the part is the message."""
        return self.parts[index]

    def unpack(self, index: int) -> None:
        """Copy from the sender's memory, if the message lies there."""
        message = self._to_copy[index]
        if message is not None:
            self.parts[index].copy_(message)


class Compressed(Wire):
    """Numbers encoded by a codec, with error feedback (Seide et al., 2014; Karimireddy et al., 2019).

    A sender's parts (fp32) are residuals: all that was put and not yet sent, so that later messages carry what one
    message rounds off. A receiver's parts are overwritten, or, if it `adds`, incremented by what it decodes.
    """

    def __init__(self, codec: Codec, parts: Sequence[Tensor], messages: Sequence[Tensor], adds: bool) -> None:
        super().__init__(parts, messages)
        self._encoded = list(messages)
        self._codec = codec
        self._adds = adds
        self._scratch = torch.empty(max(len(part) for part in parts))

    def put(self, place: Tensor, values: Tensor) -> None:
        """Add to the residual."""
        place.add_(values.to(place))

    def pack(self, index: int) -> Tensor:
        """Encode the residual; keep the error of the code as the new residual."""
        residual = self.parts[index]
        self._codec.encode(residual, self._encoded[index])
        decoded = self._decoded(index)
        residual.sub_(decoded)
        return decoded

    def unpack(self, index: int) -> None:
        """Decode into the part, or add to it."""
        into = self.parts[index]
        into.copy_(into + self._decoded(index) if self._adds else self._decoded(index))

    def _decoded(self, index: int) -> Tensor:
        values = self._scratch[: len(self.parts[index])]
        self._codec.decode(self._encoded[index], values)
        return values


def make_wire(
    options: Options, messages: Sequence[Tensor], sizes: Sequence[int], flat: Tensor | None = None, adds: bool = False
) -> Wire:
    """Return one end of a stream of chunks of so many elements, encoded as the options say.

    `flat` holds the numbers of all chunks; without it the messages themselves hold them, unless compressed.
    """
    codec = make_codec(options)
    if codec:
        return Compressed(
            codec, torch.split(torch.zeros(sum(sizes)) if flat is None else flat, list(sizes)), messages, adds
        )
    if flat is None:
        return Dense([message.view(torch_dtype(options.wire_dtype)) for message in messages], messages)
    return Dense(torch.split(flat, list(sizes)), messages)
