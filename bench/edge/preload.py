"""What the process that launches are forked from imports: everything a variant may need, so that none pays for it."""

from __future__ import annotations

import warnings
from contextlib import suppress

import torch

from bench.config import BadInput
from bench.edge.libraries import library
from bench.rank.model import GPT
from bench.shape import GPTShape

for _name in ("safetensors.torch", "torchao.quantization", "onnxruntime"):
    with suppress(BadInput):
        library(_name)
with warnings.catch_warnings(), torch.device("meta"):  # torch imports what the meta device needs at its first use
    warnings.simplefilter("ignore")
    GPT(GPTShape(n_layer=1, n_head=1, n_embd=8, vocab_size=8, block_size=8))
