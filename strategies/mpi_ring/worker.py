"""The strategy: each worker's gradients go through the ring, and every worker applies the mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from strategies.base import WorkerOptimizer, torch_dtype
from strategies.buffers import FlatLayout, Readiness
from strategies.gradients import on_gradient
from strategies.group import Group
from strategies.mpi_ring.ring import Ring, broadcast_weights
from strategies.options import Options
from strategies.volume import Volume


class MPIRing(WorkerOptimizer):
    """Trains with the mean gradient of all workers, summed by `Ring`.

    A bucket starts as soon as backward has produced its last gradient. Each worker divides its gradient by the number
    of workers before anything is summed or rounded, so that scaled fp16 gradients do not overflow.
    """

    def __init__(self, group: Group, options: Options) -> None:
        super().__init__(group, options)
        self._comm = group.comm.Dup()
        self._last_pass = True

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Receive rank 0's weights, identify the allreduce, install hooks. Collective."""
        super().prepare(model, optimizer)
        self._layout = FlatLayout.of(model)
        broadcast_weights(self._comm, model.parameters())
        wire_dtype = torch_dtype(self.options.wire_dtype)
        self._ring = self._make_ring(self._layout.num_elements, wire_dtype, self.counters)
        # In fp32, because a 16-bit wire rounds at other places than the sums that it is compared with.
        sizes = {(end - begin) * wire_dtype.itemsize // 4 for begin, end in self._ring.ranges}
        self._identify(self._allreduce, sorted(sizes), torch.float32)
        self._own_views = self._layout.views(self._ring.own)
        # Where the mean gradient is read from, in fp32.
        self._mean = self._ring.result if self._ring.result.dtype == torch.float32 else self._ring.own
        self._readiness = Readiness(self._layout, self._ring.ranges)
        for index, parameter in enumerate(self._layout.parameters):
            self._hooks.append(on_gradient(parameter, partial(self._gradient_ready, index)))
        self._watch_gradients(model)
        return model

    def _make_ring(self, num_elements: int, dtype: torch.dtype, counters: Volume) -> Ring:
        pinned = self._layout.parameters[0].is_cuda
        return Ring(self._comm, counters, num_elements, dtype, self.options.segment_bytes, pinned)

    def _allreduce(self, vector: Tensor) -> Tensor:
        """Return the sum of one vector over all ranks, computed as gradients are but not counted. Collective."""
        ring = self._make_ring(vector.numel(), torch.float32, Volume())
        ring.own.copy_(vector)
        for bucket in range(len(ring.ranges)):
            ring.start(bucket)
        ring.wait()
        ring.close()
        return ring.result

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Return the context of one pass; only the gradients of a step's last pass are complete, and sent."""
        self._last_pass = last
        yield

    def _gradient_ready(self, index: int, parameter: Tensor) -> None:
        """Copy a finished gradient into the vector, and start every bucket that it completes."""
        if not self._last_pass:
            return
        assert parameter.grad is not None  # in a hook it never is
        torch.mul(parameter.grad.cpu(), 1 / self.num_workers, out=self._own_views[index])
        parameter.grad = None
        self._start_completed(index)

    def _start_completed(self, index: int) -> None:
        for bucket in self._readiness.complete(index):
            self._ring.start(bucket)

    def synchronize(self) -> None:
        """Add zeros for parameters that the loss did not reach, wait for every bucket, give parameters their mean."""
        for index in self._readiness.missing():
            self._own_views[index].zero_()
            self._start_completed(index)
        self._ring.wait()
        self._readiness.reset()
        if self._mean is not self._ring.result:
            self._mean.copy_(self._ring.result)
        for parameter, gradient in zip(self._layout.parameters, self._layout.views(self._mean), strict=True):
            parameter.grad = gradient.to(parameter.device)
        self._communication_ended()

    def close(self) -> None:
        """End the thread, free the communicator. Collective."""
        super().close()
        self._ring.close()
        self._comm.Free()
