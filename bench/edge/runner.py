"""A variant, loaded from its file, that computes logits: by torch or by onnxruntime, behind the same three methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bench.edge import export, onnx_file
from bench.edge.libraries import library
from bench.rank.model import GPT, LayerCache
from bench.rank.saved import KEY


class Runner(Protocol):
    """One loaded variant."""

    def start(self, batch_size: int) -> None:
        """Empty the KV cache."""

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Return the logits after `tokens`, which follow those in the cache: (B, T) -> (B, vocab_size)."""

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits of every next token, without the cache: (B, T) -> (B, T, vocab_size)."""


class TorchRunner:
    """A GPT."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self._caches: list[LayerCache] = []

    def start(self, batch_size: int) -> None:
        """Empty the KV cache."""
        self._caches = self.model.caches(batch_size)

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Return the logits after `tokens`."""
        return self.model.next_logits(tokens, self._caches)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits of every next token."""
        return self.model.logits(tokens)


class OnnxRunner:
    """A session of onnxruntime on the CPU."""

    def __init__(self, path: Path, num_threads: int) -> None:
        ort = library("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        self._session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        said = json.loads(self._session.get_modelmeta().custom_metadata_map[KEY])
        shape, (heads, _) = said["shape"], said["widths"][0]
        self._sizes = shape["n_layer"], 2, heads, shape["n_embd"] // shape["n_head"]
        self._past = self._empty(1)

    def _empty(self, batch_size: int) -> Any:
        layers, two, heads, size = self._sizes
        return np.zeros((layers, two, batch_size, heads, 0, size), np.float32)

    def start(self, batch_size: int) -> None:
        """Empty the KV cache."""
        self._past = self._empty(batch_size)

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Return the logits after `tokens`."""
        logits, self._past = self._step(tokens, self._past, tokens.shape[1] - 1)
        return logits[:, 0]

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits of every next token."""
        return self._step(tokens, self._empty(len(tokens)), 0)[0]

    def _step(self, tokens: Tensor, past: Any, first: int) -> tuple[Tensor, Any]:
        inputs = {"tokens": tokens.numpy(), "past": past, "first": np.asarray(first)}
        logits, present = self._session.run(None, inputs)
        return torch.from_numpy(logits), present


def load(path: Path, num_threads: int) -> Runner:
    """Return the variant in a file."""
    if path.suffix == onnx_file.SUFFIX:
        return OnnxRunner(path, num_threads)
    return TorchRunner(export.read(path)[0].model)
