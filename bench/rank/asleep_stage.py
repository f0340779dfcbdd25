"""A stage of a pipeline whose layers sleep: it passes zeros of the real shape on, so that messages are real."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.config import RunConfig

if TYPE_CHECKING:
    from bench.rank.asleep import EmulatedGPT, EmulatedLayer, SleepSchedule


class _Enter(torch.autograd.Function):
    """From what a stage receives to the scalar that its layers pass on; the gradient to send back is zeros."""

    @staticmethod
    def forward(ctx: Any, received: Tensor) -> Tensor:
        ctx.received = received.shape
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        return torch.zeros(ctx.received)


class _Leave(torch.autograd.Function):
    """From the scalar of the last layer to zeros that are sent; its backward is the first of a micro-batch."""

    @staticmethod
    def forward(ctx: Any, scalar: Tensor, shape: tuple[int, ...], schedule: SleepSchedule) -> Tensor:
        ctx.schedule = schedule
        return torch.zeros(shape)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        ctx.schedule.begin_part()
        return torch.zeros(()), None, None


class EmulatedStage(nn.Module):
    """Replaces `bench.rank.model.Stage`: the same parameters and boundaries."""

    def __init__(self, config: RunConfig, model: EmulatedGPT, index: int, count: int) -> None:
        super().__init__()
        self._shape, self._schedule = config.gpt, model.schedule
        self._is_first, self._is_last = index == 0, index == count - 1
        children: Any = dict(model.named_children())
        size = config.gpt.n_layer // count
        if self._is_first:
            self.wte, self.wpe = children["wte"], children["wpe"]
        self.blocks = children["blocks"][index * size : (index + 1) * size]
        if self._is_last:
            self.ln_f = children["ln_f"]
        self._called = [*([self.wte, self.wpe] if self._is_first else []), *self.blocks]
        self._called += [self.ln_f] if self._is_last else []
        self._layers: list[EmulatedLayer] = [m for each in self._called for m in each.modules() if hasattr(m, "name")]
        if self._is_last and not self._is_first:  # the output head, whose time is ln_f's
            self.wte = children["wte"]
            self._layers.append(self.wte)

    def forward(self, x: Tensor) -> Tensor:
        """Sleep for one micro-batch's forward; (b, 0) or (b, T, C) -> (b, T, C), of the last stage ()."""
        self._schedule.begin_pass()
        self._schedule.begin_part()
        scalar = torch.zeros(()) if self._is_first else _Enter.apply(x)  # type: ignore[no-untyped-call]
        for layer in self._layers:
            scalar = layer.append_to_graph(scalar)
        for module in self._called:
            module(scalar)
        shape = () if self._is_last else (len(x), self._shape.block_size, self._shape.n_embd)
        out: Tensor = _Leave.apply(scalar, shape, self._schedule)  # type: ignore[no-untyped-call]
        return out

    def like_input(self, rows: Tensor) -> Tensor:
        """Return a meta tensor like the input for a micro-batch without tokens, (b, 0)."""
        return torch.empty_like(rows, device="meta") if self._is_first else self._between(len(rows))

    def like_output(self, rows: Tensor) -> Tensor:
        """Return a meta tensor like the output for a micro-batch without tokens, (b, 0)."""
        return torch.empty((), device="meta", requires_grad=True) if self._is_last else self._between(len(rows))

    def _between(self, rows: int) -> Tensor:
        shape = (rows, self._shape.block_size, self._shape.n_embd)
        return torch.empty(shape, device="meta", requires_grad=True)

    def loss(self, output: Tensor, _: Tensor) -> Tensor:
        """Return a meaningless loss of zero."""
        return output
