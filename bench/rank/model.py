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
        self._width = shape.n_embd // shape.n_head  # of a head
        self.qkv = nn.Linear(shape.n_embd, 3 * shape.n_embd)
        self.proj = nn.Linear(shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Attend from each position to itself and those before it: (B, T, C) -> (B, T, C).

        With a cache, x follows the positions in it, and is added to it.
        """
        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, -1, self._width).permute(2, 0, 3, 1, 4)  # (B, H, T, C/H)
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
        return self.head(self._hidden(tokens))

    def _hidden(self, tokens: Tensor, caches: Sequence[LayerCache | None] | None = None) -> Tensor:
        """Return what the last block gives, (B, T) -> (B, T, C); with caches, `tokens` follow those in the caches."""
        caches = caches or [None] * len(self.blocks)
        begin = caches[0].length if caches[0] is not None else 0
        x = self.embed(tokens, begin)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cache)
        return x

    def embed(self, tokens: Tensor, begin: int = 0) -> Tensor:
        """Return what the first block reads, the first token at position `begin`: (B, T) -> (B, T, C)."""
        positions = torch.arange(begin, begin + tokens.shape[1], device=tokens.device)
        out: Tensor = self.wte(tokens) + self.wpe(positions)
        return out

    def head(self, x: Tensor) -> Tensor:
        """Return the logits of what the last block returned: (B, T, C) -> (B, T, vocab_size)."""
        return F.linear(self.ln_f(x), self.wte.weight)

    def caches(self, batch_size: int) -> list[LayerCache]:
        """Return an empty cache per block, for block_size positions of `batch_size` sequences."""
        size = self.shape.n_embd // self.shape.n_head
        layers = [block.attention for block in self.blocks if isinstance(block, Block)]
        return [LayerCache(batch_size, layer.n_head, self.shape.block_size, size) for layer in layers]

    def next_logits(self, tokens: Tensor, caches: Sequence[LayerCache]) -> Tensor:
        """Return the logits of the token after `tokens`, which follow those in caches: (B, T) -> (B, vocab_size)."""
        return F.linear(self.ln_f(self._hidden(tokens, caches)[:, -1]), self.wte.weight)

    def stage(self, index: int, count: int) -> Stage:
        """Return one of `count` consecutive parts with equally many blocks, which shares this model's parameters."""
        return Stage(self, index, count)

    def split_linears(self) -> dict[str, str]:
        """Return how tensor parallelism divides each linear layer."""
        return split_linears(self.shape.n_layer)

    def split_sequence(self) -> list[str]:
        """Return the layers that may compute a part of the tokens, from which tokens to which are divided."""
        norms = [f"blocks.{i}.{name}" for i in range(self.shape.n_layer) for name in ("ln_1", "ln_2")]
        return ["blocks.0", *norms, "ln_f"]

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of `targets`, nats per token: (B, T), (B, T) -> ()."""
        return cross_entropy(self.logits(tokens), targets)


class Stage(nn.Module):
    """Some consecutive blocks of a GPT, the embeddings before the first and the output head after the last ones."""

    def __init__(self, model: GPT, index: int, count: int) -> None:
        super().__init__()
        size = model.shape.n_layer // count
        self._shape, self._is_first, self._is_last = model.shape, index == 0, index == count - 1
        self.wte = model.wte if self._is_first or self._is_last else None
        self.wpe = model.wpe if self._is_first else None
        self.blocks = model.blocks[index * size : (index + 1) * size]
        self.ln_f = model.ln_f if self._is_last else None
        self._model = [model]  # in a list: it is no module of this one

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) tokens of the first stage, else (B, T, C) -> logits of the last stage, else (B, T, C)."""
        x = self._model[0].embed(x) if self._is_first else x
        for block in self.blocks:
            x = block(x)
        return self._model[0].head(x) if self._is_last else x

    def like_input(self, tokens: Tensor) -> Tensor:
        """Return a meta tensor like the input for these tokens; its values are never read."""
        shape = tokens.shape if self._is_first else (*tokens.shape, self._shape.n_embd)
        dtype = tokens.dtype if self._is_first else torch.float32
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=not self._is_first)

    def like_output(self, tokens: Tensor) -> Tensor:
        """Return a meta tensor like the output for these tokens."""
        width = self._shape.vocab_size if self._is_last else self._shape.n_embd
        return torch.empty((*tokens.shape, width), device="meta", requires_grad=True)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, nats per token: (B, T, vocab_size), (B, T) -> ()."""
        return cross_entropy(logits, targets)


def split_linears(n_layer: int) -> dict[str, str]:
    """Return how tensor parallelism divides the linear layers of a GPT; the rows of qkv are those of q, k and v."""
    of_block = {"attention.qkv": "3 columns", "attention.proj": "rows", "fc": "columns", "proj": "rows"}
    return {f"blocks.{i}.{name}": how for i in range(n_layer) for name, how in of_block.items()}


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, nats per token: (B, T, vocab_size), (B, T) -> ()."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


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
