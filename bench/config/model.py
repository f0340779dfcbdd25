"""The GPT that is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from bench.shape import PRESETS, GPTShape
from strategies.options import Knobs, Unit

if TYPE_CHECKING:
    from bench.config.run import RunConfig


class Model(Knobs):
    """A preset and overrides of its dimensions."""

    model: Literal["gpt-nano", "gpt-micro", "gpt-mini", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = "gpt-nano"
    """Preset GPT; the next five fields override its dimensions one by one."""
    n_layer: Annotated[int | None, Unit("blocks")] = Field(None, ge=1, le=1 << 10)
    """Transformer blocks; none: the preset's."""
    n_head: Annotated[int | None, Unit("heads")] = Field(None, ge=1, le=1 << 10)
    """Attention heads per block; none: the preset's."""
    n_embd: Annotated[int | None, Unit("numbers")] = Field(None, ge=1, le=1 << 16)
    """Width of the residual stream; none: the preset's."""
    vocab_size: Annotated[int | None, Unit("tokens")] = Field(None, ge=2, le=1 << 22)
    """Number of distinct tokens; none: the preset's."""
    block_size: Annotated[int | None, Unit("tokens")] = Field(None, ge=1, le=1 << 20)
    """Tokens per sequence; none: the preset's."""

    @property
    def gpt(self) -> GPTShape:
        """The preset's dimensions with this run's overrides."""
        given = {name: getattr(self, name) for name in GPTShape.model_fields}
        return PRESETS[self.model].model_copy(update={k: v for k, v in given.items() if v is not None})


def check(config: RunConfig) -> Iterator[str]:
    """Yield impossible dimensions."""
    if config.gpt.n_embd % config.gpt.n_head:
        yield f"n_embd: {config.gpt.n_embd} does not divide into n_head: {config.gpt.n_head} heads"
