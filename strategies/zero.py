"""ZeRO on mpi4py: a colocated parameter server whose pushes and pulls are the two halves of a ring-allreduce.

A ring-allreduce is a reduce-scatter, after which each rank holds the sum of one N-th of the gradient, and an
all-gather. If that rank runs the optimizer on its N-th between the two, weights are gathered instead of gradients, and
the optimizer's state is divided by N: ZeRO stages 1 and 2 (Rajbhandari et al., SC 2020). A parameter server with a
shard on every worker's rank does the same: push is the reduce-scatter, pull is the all-gather, and a rank sends
2(N-1)/N·M either way. The ring adds one rank's part per hop, a server adds all parts itself; nothing else differs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from strategies.base import Observed, Strategy, torch_dtype
from strategies.buffers import FlatLayout, Readiness
from strategies.gradients import gradient_factor, mark_stepped, on_gradient
from strategies.group import Group
from strategies.mpi_ring.ring import Ring, broadcast_weights, sum_over_ranks
from strategies.newest import NewestWeights
from strategies.options import Options
from strategies.parameter_server.agreement import agree
from strategies.parameter_server.update import Update, updates_maker


class Zero(Strategy):
    """Each rank updates its block of every bucket of the ring, and the others receive the new weights from it.

    A bucket is reduced as soon as backward has produced its last gradient, updated as soon as it is reduced, gathered
    as soon as it is updated; the next forward waits for the weights of a module when it reaches it. Clipping and loss
    scaling need the norm of the whole gradient: updates then begin when the last bucket is reduced.

    Gradients are divided by the number of workers before they are summed. With a 16-bit wire dtype partial sums and new
    weights are rounded to it; each rank keeps fp32 weights of its own blocks.
    """

    def __init__(self, group: Group, options: Options) -> None:
        super().__init__(group, options)
        self._comm = group.comm.Dup()
        self._last_pass = True
        self._in_step = False  # whether this step has written a gradient
        self._waiting: list[int] = []  # buckets that are reduced, but not updated before the norm is known
        self._norm: float | None = None  # of this step's gradient

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Receive rank 0's weights, divide them and the optimizer among the ranks, install hooks. Collective."""
        self.group.barrier()
        self._optimizer = optimizer
        self._layout = FlatLayout.of(model)
        self._parameters = self._layout.parameters
        self._settings = agree(
            self.group, self._layout, model, optimizer, self.options, "zero", "ranks", "use another strategy"
        )
        broadcast_weights(self._comm, self._parameters)
        self._ring = Ring(
            self._comm, self.counters, self._layout.num_elements, torch_dtype(self.options.wire_dtype),
            self.options.segment_bytes, self._parameters[0].is_cuda, self._reduced, self._communication_ended,
        )  # fmt: skip
        self._own_views = self._layout.views(self._ring.own)
        self._readiness = Readiness(self._layout, self._ring.ranges)
        self._share_out(optimizer)
        self._buckets_of: list[list[int]] = [[] for _ in self._parameters]
        for bucket, indices in enumerate(self._layout.parameters_in(self._ring.ranges)):
            for index in indices:
                self._buckets_of[index].append(bucket)
        self._taken = [True] * len(self._parameters)  # whether the model has the newest weights
        self._watch_gradients(model)
        for index, parameter in enumerate(self._parameters):
            self._hooks.append(on_gradient(parameter, partial(self._gradient_ready, index)))
        self._newest = NewestWeights(model, self._parameters, self._take)
        return model

    def _share_out(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the weights of this rank's blocks; let the model's weights lie where gathered ones arrive, if they fit.

        They arrive when backward needs the old ones no more: a bucket is gathered after all its gradients were ready,
        and every operation of backward that reads its parameters has then run.
        """
        ring, layout, num_ranks = self._ring, self._layout, self.group.size
        self._views = layout.views(ring.result)
        self._blocks = [ring.own_block(bucket) for bucket in range(len(ring.ranges))]
        self._is_in_place = [p.dtype == ring.result.dtype and not p.is_cuda for p in self._parameters]
        weights = ring.result if all(self._is_in_place) else torch.empty(layout.num_elements)  # in fp32
        for view, parameter in zip(layout.views(weights), self._parameters, strict=True):
            view.copy_(parameter.detach())
        self._weights_of = [weights[block].clone() for block in self._blocks]
        make = updates_maker(optimizer, layout)
        self._updates: list[dict[int, Update]] = [
            make((block.start, block.stop), own, ring.own[block])
            for block, own in zip(self._blocks, self._weights_of, strict=True)
        ]
        for view, parameter, in_place in zip(self._views, self._parameters, self._is_in_place, strict=True):
            if in_place:
                view.copy_(parameter.detach())
                parameter.data = view
        owned = [sum(_length(ring.own_block(b, rank)) for b in range(len(ring.ranges))) for rank in range(num_ranks)]
        self._imbalance = max(owned) * num_ranks / layout.num_elements

    def observe(self) -> Observed:
        """Add the forward's wait, and the balance of the shards."""
        return replace(super().observe(), wait_in_forward_s=self.wait_in_forward_s, shard_imbalance=self._imbalance)

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Return the context of one pass; only the gradients of a step's last pass are complete, and sent."""
        self._last_pass = last
        yield

    def _gradient_ready(self, index: int, parameter: Tensor) -> None:
        if self._last_pass:
            assert parameter.grad is not None  # in a hook it never is
            self._write(index, parameter.grad.cpu())
            parameter.grad = None

    def _write(self, index: int, gradient: Tensor) -> None:
        """Copy a gradient into the flat vector, and start every bucket that it completes."""
        if not self._in_step:
            self._begin_step()
        self._take([index])  # which no forward has read
        torch.mul(gradient, 1 / self.num_workers, out=self._own_views[index])
        self._taken[index] = False
        for bucket in self._readiness.complete(index):
            self._ring.start(bucket)

    def _begin_step(self) -> None:
        """Wait until the last step's messages have left; follow the optimizer's settings if they have changed."""
        self._in_step, self._norm = True, None
        self._ring.wait()
        assert self._settings is not None  # every rank updates
        if self._settings.changed():
            settings = self._settings.of_groups(self._settings.vector)
            for updates in self._updates:
                for number, update in updates.items():
                    update.change(settings[number])

    def synchronize(self) -> None:
        """Send zeros for parameters that the loss did not reach; wait for the norm, if updates depend on it."""
        for index in self._readiness.missing():
            self._write(index, torch.zeros_like(self._own_views[index]))
        self._readiness.reset()
        self._in_step = False
        if self.options.needs_norm:
            self._ring.wait_until(lambda: self._norm is not None)
            assert self._norm is not None
            self.scaler.update(math.isfinite(self._norm))

    def step(self) -> None:
        """Leave new weights to be taken by the next forward."""
        mark_stepped(self._optimizer)
        self.wait_in_forward_s = 0.0

    def _take(self, indices: Sequence[int]) -> None:
        """Let the model have parameters' new weights; wait for them if need be."""
        for index in indices:
            if self._taken[index]:
                continue
            if not self._ring.is_complete(self._buckets_of[index]):
                began = time.perf_counter()
                self._ring.wait_for(self._buckets_of[index])
                self.wait_in_forward_s += time.perf_counter() - began
            if not self._is_in_place[index]:
                with torch.no_grad():
                    self._parameters[index].copy_(self._views[index])
            self._taken[index] = True

    def settle(self) -> None:
        """Wait until the model holds the weights of all steps so far."""
        self._take(range(len(self._parameters)))

    def close(self) -> None:
        """Take the last weights, end the ring's thread, free the communicator. Collective."""
        self.settle()
        self._ring.wait()
        self._newest.remove()
        super().close()
        self._ring.close()
        self._comm.Free()

    # Below: called on the ring's thread.

    def _reduced(self, bucket: int) -> None:
        """Update this rank's block of a bucket and gather it: now, or when the norm of the gradient is known."""
        if not self.options.needs_norm:
            self._update(bucket, 1.0)
            self._gather(bucket)
            return
        self._waiting.append(bucket)
        if len(self._waiting) == len(self._blocks):
            self._update_by_norm()

    def _update_by_norm(self) -> None:
        """Update all blocks by the unscaled and clipped gradient, or none if it is not finite; gather them."""
        own = (torch.linalg.vector_norm(self._ring.own[block], dtype=torch.float64) for block in self._blocks)
        square = sum_over_ranks(self._comm, self.counters, sum(float(norm) ** 2 for norm in own))
        norm = math.sqrt(square) / self.scaler.scale
        factor = gradient_factor(norm, self.options.clip_norm) / self.scaler.scale
        buckets, self._waiting = self._waiting, []
        for bucket in reversed(buckets):  # the last is needed first
            if math.isfinite(norm):
                self._update(bucket, factor)
            self._gather(bucket)
        with self._ring.changed:
            self._norm = norm
            self._ring.changed.notify_all()

    def _update(self, bucket: int, factor: float) -> None:
        """Update this rank's block of a bucket by its mean gradient times `factor`."""
        divisor = None if factor == 1.0 else torch.tensor(1 / factor)
        for update in self._updates[bucket].values():
            update(divisor)

    def _gather(self, bucket: int) -> None:
        self._ring.result[self._blocks[bucket]].copy_(self._weights_of[bucket])
        self._ring.gather(bucket)


def _length(span: slice) -> int:
    return int(span.stop - span.start)
