"""A flat vector, and the messages in which its chunks travel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from strategies.base import Options
from strategies.buffers import as_bytes, host_buffer
from strategies.parameter_server.compression import Codec, make_codec


class Wire(ABC):
    """One end of a stream of chunks: `buffer` is what its owner writes or reads, `message(i)` what MPI moves.

    `parts[i]` is a chunk's place in the buffer. Views are made once: for small chunks they would cost as much as sums.
    """

    def __init__(self, buffer: Tensor, spans: Sequence[slice], messages: Sequence[Tensor]) -> None:
        self.buffer = buffer
        self.parts = [buffer[span] for span in spans]
        self._messages = [as_bytes(message) for message in messages]

    def message(self, index: int) -> np.ndarray:
        """The bytes that travel for one chunk; always the same memory."""
        return self._messages[index]

    @abstractmethod
    def put(self, place: Tensor, values: Tensor) -> None:
        """Write values to send into a part of the buffer."""

    @abstractmethod
    def pack(self, index: int) -> Tensor:
        """Make a chunk's message from the buffer; return what its receiver will read there."""

    @abstractmethod
    def unpack(self, index: int) -> None:
        """Make a chunk of the buffer from its message."""


class Dense(Wire):
    """The buffer itself travels, in its own dtype."""

    def __init__(self, buffer: Tensor, spans: Sequence[slice]) -> None:
        super().__init__(buffer, spans, [buffer[span] for span in spans])

    def put(self, place: Tensor, values: Tensor) -> None:
        """Round to the wire dtype."""
        place.copy_(values)

    def pack(self, index: int) -> Tensor:
        """Nothing is left to do."""
        return self.parts[index]

    def unpack(self, index: int) -> None:
        """Nothing is left to do."""


class Compressed(Wire):
    """Sends what a codec makes of the buffer, and owes the rest: error feedback.

    A sender's buffer (fp32) holds all that was put and not yet said, so that what one message leaves out the next ones
    say: nothing is lost. A receiver's is overwritten; one that `adds` receives changes and sums them up.
    """

    def __init__(self, codec: Codec, spans: Sequence[slice], adds: bool) -> None:
        self._encoded = [torch.empty(codec.nbytes(s.stop - s.start), dtype=torch.uint8) for s in spans]
        super().__init__(torch.zeros(max(span.stop for span in spans)), spans, self._encoded)
        self._codec = codec
        self._adds = adds
        self._said = torch.empty(max(span.stop - span.start for span in spans))

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


def make_wire(options: Options, spans: Sequence[slice], pinned: bool = False, adds: bool = False) -> Wire:
    """One end of a stream in the form that a run asks for; page-locked where a GPU copies to and from it."""
    codec = make_codec(options)
    if codec:
        return Compressed(codec, spans, adds)
    return Dense(host_buffer(max(span.stop for span in spans), options.wire_dtype, pinned), spans)
