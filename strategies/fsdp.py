"""PyTorch's FSDP2 (`fully_shard`) over Gloo or NCCL: weights, gradients and optimizer state divided among the ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from strategies import process_group
from strategies.base import Observed, WorkerOptimizer, torch_dtype
from strategies.closed_forms import NORM_BYTES
from strategies.group import Group
from strategies.options import Options

Moved = Callable[[int, float], None]  # bytes that this rank sent (as many as it received), and the seconds it took


class FSDP(WorkerOptimizer):
    """FSDP2 as its documentation says: one group per block, one for the rest of the model.

    Forward gathers a group's weights. With `reshard_after_forward` (ZeRO stage 3) it frees them, and backward gathers
    them again; without (ZeRO stage 2) they stay until backward has used them. Backward reduce-scatters a group's
    gradients, in the wire dtype; each rank updates its shard of every tensor, and weights travel in fp32.

    On a CPU torch has no streams: every collective blocks the pass that calls it, and nothing overlaps. close() gives
    every rank's model whole, plain weights again.
    """

    def __init__(self, group: Group, options: Options) -> None:
        super().__init__(group, options)
        self._in_backward = False

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Start the process group, give every rank rank 0's weights, divide the model and the optimizer. Collective."""
        super().prepare(model, optimizer)
        self._device = next(model.parameters()).device
        process_group.start(self.group, self._device)
        for parameter in model.parameters():
            dist.broadcast(parameter.detach(), src=0)
        name_of = {parameter: name for name, parameter in model.named_parameters()}
        self._shard(model)
        sharded = dict(model.named_parameters())
        for group in optimizer.param_groups:  # it has no state yet
            group["params"] = [sharded[name_of[parameter]] for parameter in group["params"]]
            if isinstance(optimizer, torch.optim.SGD):
                group.update(fused=False, foreach=True)  # torch 2.13 has no fused SGD of sharded tensors
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._counts_reduce_scatter = self._device.type != "cuda"
        return model

    def _shard(self, model: nn.Module) -> None:
        """Apply fully_shard to every block and to the model; remember what it adds, so that close() can take it away.

        A block is an element of a list or sequence of modules with parameters.
        """
        policy = MixedPrecisionPolicy(reduce_dtype=torch_dtype(self.options.wire_dtype))
        mesh = init_device_mesh(self._device.type, (self.group.size,), mesh_dim_names=(process_group.mesh_name(),))
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
        blocks = [block for each in lists for block in each if next(block.parameters(), None) is not None]
        self._model = model
        self._plain: list[tuple[nn.Module, Any, set[int]]] = []  # each group's module, its class, its hooks
        for module in (*blocks, model):
            self._plain.append((module, type(module), {*module._forward_pre_hooks, *module._forward_hooks}))
            # None is FSDP2's default: all but the outermost, whose backward follows its forward at once.
            fully_shard(
                module, mesh=mesh, mp_policy=policy,
                reshard_after_forward=None if self.options.reshard_after_forward else False,
            )  # fmt: skip
        for group in self._groups():
            group.set_custom_all_gather(AllGather(self._gathered))
            group.set_custom_reduce_scatter(ReduceScatter(self._scattered))

    def _groups(self) -> list[FSDPModule]:
        return [module for module, *_ in self._plain if isinstance(module, FSDPModule)]

    def _gathered(self, shard_bytes: int, seconds: float) -> None:
        """Count an all-gather: a ring passes on every shard but the right neighbour's."""
        moved = (self.group.size - 1) * shard_bytes
        self.counters.add(moved, moved, None, None)
        self._waited(seconds)

    def _scattered(self, nbytes: int, seconds: float) -> None:
        """Count a reduce-scatter: Gloo's is an allreduce inside, a ring's of all that is reduced."""
        moved = 2 * (self.group.size - 1) / self.group.size * nbytes
        self.counters.add(*((moved, moved, None, None) if self._counts_reduce_scatter else [None] * 4))
        self._waited(seconds)

    def _waited(self, seconds: float) -> None:
        self.communication_s += seconds
        if self._in_backward:
            self.wait_in_backward_s += seconds
        else:
            self.wait_in_forward_s += seconds

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Return the context of one pass; only the last of a step reduces gradients."""
        self._in_backward = False
        assert isinstance(self._model, FSDPModule)
        self._model.set_requires_gradient_sync(last)
        # Without resharding after forward, weights stay for all passes of a step.
        self._model.set_reshard_after_backward(last or self.options.reshard_after_forward)
        yield

    def scaled(self, loss: Tensor) -> Tensor:
        """Note that backward begins."""
        self._in_backward = True
        return super().scaled(loss)

    def synchronize(self) -> None:
        """Do nothing: the last reduce-scatter has ended inside backward."""

    def step(self) -> None:
        """Apply the mean gradient to this rank's shards, or skip it if it is not finite."""
        super().step()
        self.communication_s = self.wait_in_forward_s = self.wait_in_backward_s = 0.0

    def _norm(self, gradients: Sequence[Tensor]) -> float:
        """Return the norm of the whole gradient: the ranks add up the squares of their shards'."""
        squares = [torch.linalg.vector_norm(_local(g), dtype=torch.float64) ** 2 for g in gradients]
        total = torch.stack(squares).sum()
        if self.group.size > 1:
            dist.all_reduce(total)
        moved = 2 * (self.group.size - 1) / self.group.size * NORM_BYTES
        self.counters.add(moved, moved, None, None)
        return math.sqrt(float(total))

    def observe(self) -> Observed:
        """Add how long forward and backward stood still for other ranks."""
        return replace(
            super().observe(), wait_in_forward_s=self.wait_in_forward_s, wait_in_backward_s=self.wait_in_backward_s
        )

    def close(self) -> None:
        """Gather all weights, make the model a plain one, end the process group. Collective."""
        super().close()
        for group in self._groups():
            group.reshard()
        whole: dict[Tensor, nn.Parameter] = {}
        for module in self._model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter not in whole:
                    full: Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
                    whole[parameter] = nn.Parameter(full.detach(), requires_grad=parameter.requires_grad)
                module.register_parameter(name, whole[parameter])
        for plain, kind, hooks in self._plain:
            plain.__class__ = kind
            for added in (plain._forward_pre_hooks, plain._forward_hooks):
                for key in [key for key in added if key not in hooks]:
                    del added[key]
        self._plain.clear()
        process_group.end()


class AllGather(DefaultAllGather):
    """FSDP2's all-gather, which tells what it moved."""

    def __init__(self, moved: Moved) -> None:
        self._moved = moved

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> Any:
        """Gather every rank's shard."""
        began = time.perf_counter()
        work = super().__call__(output_tensor, input_tensor, group, async_op)
        self._moved(input_tensor.nbytes, time.perf_counter() - began)
        return work


class ReduceScatter(DefaultReduceScatter):
    """FSDP2's reduce-scatter, which tells what it moved."""

    def __init__(self, moved: Moved) -> None:
        self._moved = moved

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> Any:
        """Reduce every rank's gradients to this rank's shard."""
        began = time.perf_counter()
        work = super().__call__(output_tensor, input_tensor, group, op, async_op)
        self._moved(input_tensor.nbytes, time.perf_counter() - began)
        return work


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
