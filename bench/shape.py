"""The dimensions of a GPT, the presets, and the closed forms of its parameters and FLOPs."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class GPTShape(BaseModel):
    """The dimensions of a GPT: layers, heads, width, vocabulary, context length in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    n_layer: int = Field(ge=1, le=1 << 10)
    n_head: int = Field(ge=1, le=1 << 10)
    n_embd: int = Field(ge=1, le=1 << 16)
    vocab_size: int = Field(ge=2, le=1 << 22)
    block_size: int = Field(ge=1, le=1 << 20)

    @model_validator(mode="after")
    def _divides(self) -> GPTShape:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd: {self.n_embd} does not divide into n_head: {self.n_head} heads")
        return self

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters; the output head is tied to the token embedding."""
        d = self.n_embd
        block = 12 * d * d + 13 * d  # qkv 3d²+3d, projection d²+d, mlp 8d²+5d, two layer norms 4d
        return self.vocab_size * d + self.block_size * d + self.n_layer * block + 2 * d

    @property
    def layer_tensors(self) -> dict[str, tuple[int, ...]]:
        """Elements of each tensor by layer (weight, then bias), in the order of definition, which is forward's."""
        d = self.n_embd
        block = {
            "ln_1": (d, d), "attention.qkv": (3 * d * d, 3 * d), "attention.proj": (d * d, d), "ln_2": (d, d),
            "fc": (4 * d * d, 4 * d), "proj": (4 * d * d, d),
        }  # fmt: skip
        blocks = {f"blocks.{i}.{name}": sizes for i in range(self.n_layer) for name, sizes in block.items()}
        return {"wte": (self.vocab_size * d,), "wpe": (self.block_size * d,), **blocks, "ln_f": (d, d)}

    @property
    def tensors(self) -> tuple[int, ...]:
        """Elements of each trainable tensor, in the order of definition."""
        return tuple(size for sizes in self.layer_tensors.values() for size in sizes)

    @property
    def tensor_rows(self) -> tuple[int, ...]:
        """First dimension of each of them: every weight but the embeddings' is (outputs, inputs), or a vector."""
        rows: list[int] = []
        for sizes in self.layer_tensors.values():
            rows += [sizes[-1]] * len(sizes) if len(sizes) > 1 else [sizes[0] // self.n_embd]
        return tuple(rows)

    @property
    def in_block(self) -> tuple[bool, ...]:
        """Whether each of them belongs to a block."""
        return tuple(name.startswith("blocks.") for name, sizes in self.layer_tensors.items() for _ in sizes)

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs per token, 6N + 12·L·H·Q·T: PaLM (arXiv:2204.02311), appendix B.

        N excludes the position embedding, which is looked up and not multiplied.
        """
        matmul_parameters = self.num_parameters - self.block_size * self.n_embd
        return 6 * matmul_parameters + 12 * self.n_layer * self.n_embd * self.block_size


PRESETS: dict[str, GPTShape] = {
    name: GPTShape(n_layer=layers, n_head=heads, n_embd=width, vocab_size=vocab, block_size=block)
    for name, layers, heads, width, vocab, block in [
        ("gpt-nano", 3, 3, 48, 256, 128),
        ("gpt-micro", 4, 4, 128, 256, 128),
        ("gpt-mini", 6, 6, 192, 256, 128),
        ("gpt2", 12, 12, 768, 50257, 1024),
        ("gpt2-medium", 24, 16, 1024, 50257, 1024),
        ("gpt2-large", 36, 20, 1280, 50257, 1024),
        ("gpt2-xl", 48, 25, 1600, 50257, 1024),
    ]
}
