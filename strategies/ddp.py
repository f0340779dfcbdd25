"""PyTorch's DistributedDataParallel over Gloo or NCCL."""

# No `from __future__ import annotations` here: DDP checks that the hook's annotations are types, not strings.
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # re-exported from C++
from torch.nn.parallel import DistributedDataParallel

from strategies import process_group
from strategies.allreduce import message_sizes
from strategies.base import Observed, WorkerOptimizer, torch_dtype
from strategies.group import Group
from strategies.options import Options


class DDP(WorkerOptimizer):
    """DistributedDataParallel, used as its documentation says, with a hook that casts and counts each bucket."""

    def __init__(self, group: Group, options: Options) -> None:
        super().__init__(group, options)
        self._module: DistributedDataParallel | None = None
        self._wait_in_backward_s = 0.0

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Start the process group, wrap the model (which broadcasts rank 0's weights). Collective."""
        super().prepare(model, optimizer)
        device = next(model.parameters()).device
        process_group.start(self.group, device)
        self._watch_gradients(model)

        def allreduce(vector: Tensor) -> Tensor:
            reduced = vector.to(device)
            dist.all_reduce(reduced)
            return reduced.cpu()

        # A bucket holds at least one parameter; in the first step one bucket holds all.
        numbers = [parameter.numel() for parameter in self._parameters]
        sizes = message_sizes(min(numbers), sum(numbers), self.group.size)
        self._identify(allreduce, sizes, torch_dtype(self.options.wire_dtype))
        self._module = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            bucket_cap_mb=self.options.bucket_bytes / 2**20,
            gradient_as_bucket_view=True,
        )
        self._module.register_comm_hook(None, self._reduce)
        return self._module

    def _reduce(self, _: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Return the mean of one bucket over all workers, reduced in the wire dtype."""
        buffer = bucket.buffer()
        wire = buffer.to(torch_dtype(self.options.wire_dtype)).div_(self.group.size)
        self._count_ring(wire.numel())
        work: Any = dist.all_reduce(wire, async_op=True)

        def finish(future: torch.futures.Future[list[Tensor]]) -> Tensor:
            reduced = future.value()[0]
            return reduced if reduced.dtype == buffer.dtype else buffer.copy_(reduced)

        done: torch.futures.Future[Tensor] = work.get_future().then(finish)
        return done

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Return the context of one pass; only the last one reduces."""
        assert self._module is not None
        if last:
            yield
        else:
            with self._module.no_sync():
                yield

    def synchronize(self) -> None:
        """Record how long backward() waited: DDP waits for its communication inside it."""
        self._wait_in_backward_s = time.perf_counter() - self._last_gradient_at
        self._communication_ended()

    def observe(self) -> Observed:
        """Add how long backward() waited: from the last gradient to its end."""
        return replace(super().observe(), wait_in_backward_s=self._wait_in_backward_s)

    def close(self) -> None:
        """End the process group. Collective."""
        super().close()
        self._module = None  # its reducer holds this strategy's hook, and lives as long as it
        process_group.end()
