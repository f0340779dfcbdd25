"""Fewer bytes per number: lossy codecs for the messages between workers and servers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from strategies.base import torch_dtype
from strategies.options import NUMBERS_PER_SCALE, Options


class Codec(ABC):
    """Encodes fp32 numbers in a shorter message, with an error that the sender keeps as its residual."""

    @abstractmethod
    def nbytes(self, num_elements: int) -> int:
        """Return the length of the message for so many numbers, bytes, scales and indices included."""

    @abstractmethod
    def encode(self, values: Tensor, message: Tensor) -> None:
        """Write the values (fp32, (num_elements,)) to a message (uint8, (nbytes,))."""

    @abstractmethod
    def decode(self, message: Tensor, values: Tensor) -> None:
        """Overwrite the values with those in a message."""


class TopK(Codec):
    """The largest magnitudes of a chunk, each an int32 index and a number in the wire dtype; the others are zero.

    Aji and Heafield, "Sparse Communication for Distributed Gradient Descent", 2017.
    """

    def __init__(self, ratio: float, dtype: torch.dtype) -> None:
        self._ratio = ratio
        self._dtype = dtype

    def _count(self, num_elements: int) -> int:
        return math.ceil(round(self._ratio * num_elements, 6))

    def nbytes(self, num_elements: int) -> int:
        """An index and a number for each of the largest."""
        return self._count(num_elements) * (4 + self._dtype.itemsize)

    def encode(self, values: Tensor, message: Tensor) -> None:
        """Write the largest and their indices."""
        count = self._count(len(values))
        indices = values.abs().topk(count, sorted=False).indices
        message[: 4 * count].view(torch.int32).copy_(indices)
        message[4 * count :].view(self._dtype).copy_(values[indices])

    def decode(self, message: Tensor, values: Tensor) -> None:
        """Write each to its index, zero elsewhere."""
        count = self._count(len(values))
        values.zero_()
        values[message[: 4 * count].view(torch.int32).long()] = message[4 * count :].view(self._dtype).to(values)


class _Scaled(Codec):
    """A message of one fp32 scale per block of numbers, then each number in few bits."""

    @staticmethod
    def _blocks(values: Tensor) -> Tensor:
        """Return the values in rows of one block each, the last padded with zeros."""
        return functional.pad(values, (0, -len(values) % NUMBERS_PER_SCALE)).view(-1, NUMBERS_PER_SCALE)

    @staticmethod
    def _scales(message: Tensor, num_elements: int) -> tuple[Tensor, Tensor]:
        """Split a message into its scales and the rest."""
        end = 4 * -(-num_elements // NUMBERS_PER_SCALE)
        return message[:end].view(torch.float32), message[end:]


class Int8(_Scaled):
    """Numbers rounded to multiples of 1/127 of the largest magnitude in their block.

    Block-wise absmax quantisation: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022.
    """

    def nbytes(self, num_elements: int) -> int:
        """A byte per number, and the scales."""
        return num_elements + 4 * -(-num_elements // NUMBERS_PER_SCALE)

    def encode(self, values: Tensor, message: Tensor) -> None:
        """Divide by the scales and round."""
        scales, codes = self._scales(message, len(values))
        blocks = self._blocks(values)
        torch.div(blocks.abs().amax(1), 127, out=scales)
        steps = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        codes.view(torch.int8).copy_(steps.round().clamp(-127, 127).view(-1)[: len(values)])

    def decode(self, message: Tensor, values: Tensor) -> None:
        """Multiply by the scales."""
        scales, codes = self._scales(message, len(values))
        values.copy_((self._blocks(codes.view(torch.int8).float()) * scales[:, None]).view(-1)[: len(values)])


class OneBit(_Scaled):
    """Signs, times the mean magnitude of their block.

    Seide et al., "1-Bit Stochastic Gradient Descent", 2014; one scale for both signs as in Karimireddy et al.,
    "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", 2019.
    """

    def nbytes(self, num_elements: int) -> int:
        """A bit per number, and the scales."""
        return -(-num_elements // 8) + 4 * -(-num_elements // NUMBERS_PER_SCALE)

    def encode(self, values: Tensor, message: Tensor) -> None:
        """Write signs and mean magnitudes."""
        scales, bits = self._scales(message, len(values))
        blocks = self._blocks(values)
        torch.sum(blocks.abs(), 1, out=scales)
        scales /= self._blocks(torch.ones_like(values)).sum(1)
        bits.copy_(torch.from_numpy(np.packbits(values.numpy() >= 0)))

    def decode(self, message: Tensor, values: Tensor) -> None:
        """Give every number its sign and its block's mean magnitude."""
        scales, bits = self._scales(message, len(values))
        signs = torch.from_numpy(np.unpackbits(bits.numpy(), count=len(values))).float().mul_(2).sub_(1)
        values.copy_((self._blocks(signs) * scales[:, None]).view(-1)[: len(values)])


def make_codec(options: Options) -> Codec | None:
    """Return the codec of `options.compression`; None without compression."""
    if options.compression == "topk":
        return TopK(options.topk_ratio, torch_dtype(options.wire_dtype))
    return {"none": None, "int8": Int8(), "onebit": OneBit()}[options.compression]
