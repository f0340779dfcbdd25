"""The GPT: pre-LN blocks, GELU, learned positions, tied embeddings, as GPT-2.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019). Shapes in comments: B sequences, T tokens,
C = n_embd channels, H heads. Presets are in bench/shape.py, which does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.devices import DEVICES
from bench.shape import GPTShape


class LayerCache:
    """Keys and values of the positions that one attention layer has seen: the next token computes only its own."""

    def __init__(self, batch_size: int, n_head: int, length: int, head_size: int) -> None:
        self._keys, self._values = torch.zeros(2, batch_size, n_head, length, head_size).unbind()
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, T, C/H) after what is there; return all keys and values. After the first call T must be 1."""
        begin, self.length = self.length, self.length + keys.shape[2]
        assert begin == 0 or self.length == begin + 1
        self._keys[:, :, begin : self.length] = keys
        self._values[:, :, begin : self.length] = values
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]


class Attention(nn.Module):
    """Causal multi-head self-attention; its heads may be fewer than C over their width (a pruned model)."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.n_head = shape.n_head
        self.qkv = nn.Linear(shape.n_embd, 3 * shape.n_embd)
        self.proj = nn.Linear(shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Attend from each position to itself and those before it: (B, T, C) -> (B, T, C).

        With a cache, x follows the positions in it, and is added to it.
        """
        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, C/H)
        if cache is not None:
            k, v = cache.append(k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(B, T, -1))
        return out


class Block(nn.Module):
    """One transformer block: attention, then an MLP of width 4C, each with LayerNorm before it and a residual."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.n_embd)
        self.attention = Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.n_embd)
        self.fc = nn.Linear(shape.n_embd, 4 * shape.n_embd)
        self.proj = nn.Linear(4 * shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.ln_1(x), cache)
        out: Tensor = x + self.proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))  # GPT-2's GELU
        return out


class GPT(nn.Module):
    """A decoder-only transformer language model."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)  # tokens; also the output head
        self.wpe = nn.Embedding(shape.block_size, shape.n_embd)  # positions
        blocks = [Block(shape) for _ in range(shape.n_layer)]
        self.blocks = nn.ModuleList(blocks)
        self.ln_f = nn.LayerNorm(shape.n_embd)
        self.apply(_initialise)
        for block in blocks:
            # GPT-2 scales the initial weights of residual layers by 1/sqrt(number of residual layers).
            for layer in (block.attention.proj, block.proj):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * shape.n_layer))

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits of every next token: (B, T) -> (B, T, vocab_size)."""
        return F.linear(self.ln_f(self._hidden(tokens)), self.wte.weight)

    def _hidden(self, tokens: Tensor, caches: Sequence[LayerCache | None] | None = None) -> Tensor:
        """Return what the last block gives, (B, T) -> (B, T, C); with caches, `tokens` follow those in the caches."""
        caches = caches or [None] * len(self.blocks)
        begin = caches[0].length if caches[0] is not None else 0
        positions = torch.arange(begin, begin + tokens.shape[1], device=tokens.device)
        x: Tensor = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cache)
        return x

    def caches(self, batch_size: int) -> list[LayerCache]:
        """Return an empty cache per block, for block_size positions of `batch_size` sequences."""
        size = self.shape.n_embd // self.shape.n_head
        layers = [block.attention for block in self.blocks if isinstance(block, Block)]
        return [LayerCache(batch_size, layer.n_head, self.shape.block_size, size) for layer in layers]

    def next_logits(self, tokens: Tensor, caches: Sequence[LayerCache]) -> Tensor:
        """Return the logits of the token after `tokens`, which follow those in caches: (B, T) -> (B, vocab_size)."""
        return F.linear(self.ln_f(self._hidden(tokens, caches)[:, -1]), self.wte.weight)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of `targets`, nats per token: (B, T), (B, T) -> ()."""
        return F.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten())


def _initialise(module: nn.Module) -> None:
    """Initialise as GPT-2: weights normal with standard deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def peak_flops_per_s(device: torch.device, precision: str) -> float | None:
    """Return a GPU's dense peak in FLOP/s (bench/devices.py), None for an unknown device or precision."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    chips = [DEVICES[chip] for chip in DEVICES if chip.upper() in name]
    return chips[0].peak_flops_per_s.get(precision) if chips else None


def model_flops_utilization(tokens_per_s: float, shape: GPTShape, peak: float) -> float:
    """Return the MFU of one device: FLOP/s of the model over `peak` FLOP/s (PaLM, arXiv:2204.02311, appendix B).

    `tokens_per_s` is that one device's throughput; recomputation does not count.
    """
    return tokens_per_s * shape.flops_per_token / peak
