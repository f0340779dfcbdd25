"""A variant as an ONNX file: one step of generation, its KV cache a tensor that goes in and comes out."""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import files
from bench.edge import export
from bench.edge.libraries import library
from bench.edge.prune import blocks
from bench.edge.recipe import Recipe
from bench.rank.model import GPT, Block
from bench.rank.saved import KEY

SUFFIX = ".onnx"
OPSET = 17


class Step(nn.Module):
    """(tokens (B, T), past (L, 2, B, H, S, D), first) -> logits of tokens[:, first:], past (L, 2, B, H, S + T, D)."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, past: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what GPT.logits does, in operations that ONNX has."""
        model, seen = self.model, past.shape[4]
        positions = torch.arange(tokens.shape[1]) + seen
        hidden = torch.arange(seen + tokens.shape[1])[None, :] > positions[:, None]  # (T, S + T)
        x = model.wte(tokens) + model.wpe(positions)
        present = []
        for number, block in enumerate(blocks(model)):
            attended, layer = _attend(block, block.ln_1(x), past[number], hidden)
            present.append(layer)
            x = x + attended
            x = x + block.proj(F.gelu(block.fc(block.ln_2(x)), approximate="tanh"))
        return F.linear(model.ln_f(x[:, first:]), model.wte.weight), torch.stack(present)


def _attend(block: Block, x: Tensor, past: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    batch, length = x.shape[:2]
    layer = block.attention
    q, k, v = layer.qkv(x).view(batch, length, 3, layer.n_head, -1).permute(2, 0, 3, 1, 4)
    k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    y = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
    return layer.proj(y.transpose(1, 2).reshape(batch, length, -1)), torch.stack([k, v])


def write(path: Path, model: GPT, made: Recipe, data: str | None) -> None:
    """Write a model of fp32 weights; its matrix products in int8 if `made` is quantised."""
    onnx = library("onnx")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain, small = Path(folder) / "plain.onnx", Path(folder) / "small.onnx"
        _trace(model, plain)
        if made.quantised:
            _quantise(plain, small)
        graph = onnx.load(small if made.quantised else plain)
    onnx.helper.set_model_props(graph, {KEY: export.describe(model, made, data)})
    with files.replacing(path) as file:
        file.write(graph.SerializeToString())


def _trace(model: GPT, path: Path) -> None:
    heads, size = blocks(model)[0].attention.n_head, model.shape.n_embd // model.shape.n_head
    example = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(model.shape.n_layer, 2, 2, heads, 3, size)
    axes = {
        "tokens": {0: "B", 1: "T"},
        "past": {2: "B", 4: "S"},
        "logits": {0: "B", 1: "N"},
        "present": {2: "B", 4: "U"},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter is deprecated; the other takes 40 times as long
        torch.onnx.export(
            Step(model).eval(), (*example, torch.tensor(0)), str(path), dynamo=False, opset_version=OPSET,
            input_names=["tokens", "past", "first"], output_names=["logits", "present"], dynamic_axes=axes,
        )  # fmt: skip


def _quantise(plain: Path, small: Path) -> None:
    ort = library("onnxruntime.quantization")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a preprocessing that changes nothing here
    try:
        ort.quantize_dynamic(plain, small, weight_type=ort.QuantType.QInt8, per_channel=True)
    finally:
        logging.disable(before)
