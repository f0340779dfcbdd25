"""Copies of a model's weights."""

from __future__ import annotations

import zlib
from functools import partial

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


class ForwardWeights:
    """Copies the weights that a model's forward reads, when it reads them.

    To ask the strategy for its newest weights between steps would hide a forward that does not wait for them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._read: Weights = {}
        self._hooks = []
        for prefix, module in model.named_modules():
            names = [f"{prefix}.{name}" if prefix else name for name, _ in module.named_parameters(recurse=False)]
            if names:
                self._hooks.append(module.register_forward_hook(partial(self._keep, names)))

    def _keep(self, names: list[str], *_: object) -> None:
        for name in names:
            self._read[name] = _copy(self._model.get_parameter(name))

    def take(self) -> Weights:
        """Return what was read since the last call; a parameter whose module was not called, as it is now."""
        weights = {name: self._read.pop(name, None) for name, _ in self._model.named_parameters()}
        return {name: _copy(self._model.get_parameter(name)) if w is None else w for name, w in weights.items()}

    def remove(self) -> None:
        """Watch no more."""
        for hook in self._hooks:
            hook.remove()


def snapshot(model: nn.Module) -> Weights:
    """Copy a model's parameters to the CPU."""
    return {name: _copy(p) for name, p in model.named_parameters()}


def checksum(weights: Weights) -> int:
    """Return the CRC-32 of all weights' bytes: workers with bitwise equal weights have equal checksums."""
    crc = 0
    for tensor in weights.values():
        crc = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, crc)
    return crc


def _copy(tensor: Tensor) -> Tensor:
    part = getattr(tensor, "to_local", lambda: tensor)()  # of a DTensor this rank's part
    copy: Tensor = part.detach().to("cpu", copy=True)
    return copy
