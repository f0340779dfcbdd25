"""Ring-allreduce by Horovod."""

from __future__ import annotations

import os
import tempfile
import time
from typing import IO, TYPE_CHECKING, Any

import horovod.torch as hvd
import torch
from torch import Tensor, nn

from strategies.allreduce import message_sizes
from strategies.base import WorkerOptimizer, torch_dtype
from strategies.gradients import mark_stepped
from strategies.group import Group
from strategies.nccl import require_own_gpu
from strategies.options import Options
from strategies.timeline import KeepsTimeline, Span, spans

if TYPE_CHECKING:
    from mpi4py import MPI


class HorovodGroup:
    """The ranks that `horovodrun --gloo` started, which have no MPI."""

    def __init__(self, options: Options) -> None:
        self.epoch_s = _init(options)
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()

    @property
    def comm(self) -> MPI.Intracomm:
        """Raise ValueError: these ranks have none."""
        raise ValueError("ranks that horovodrun started have no MPI communicator; start them with mpirun")

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value on rank 0, an empty list elsewhere. Collective."""
        values: list[Any] = hvd.allgather_object(value)
        return values if self.rank == 0 else []

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value everywhere. Collective."""
        return hvd.broadcast_object(value, root_rank=0)

    def barrier(self) -> None:
        """Return once every rank is here. Collective."""
        hvd.barrier()


class RingAllreduce(WorkerOptimizer, KeepsTimeline):
    """Horovod's DistributedOptimizer, used as its documentation says, with fixed fusion buffer and cycle time.

    Horovod sums fp16 gradients in fp16 at every hop. Over MPI it calls MPI_Allreduce, whose algorithm the
    MPI library chooses: prepare() identifies it.
    """

    timeline_title = "Horovod"

    def __init__(self, group: Group, options: Options) -> None:
        super().__init__(group, options)
        if options.wire_dtype == "bf16":
            raise ValueError("Horovod's PyTorch binding has no bf16 reduction")
        if isinstance(group, HorovodGroup):
            self._epoch_s = group.epoch_s
        else:
            os.environ["HOROVOD_CONTROLLER"] = os.environ["HOROVOD_CPU_OPERATIONS"] = "mpi"
            self._epoch_s = _init(options)
        self._timeline: IO[str] | None = None
        self._payload_elements = 0
        self._sums_scaled_fp16 = options.loss_scaling and options.wire_dtype == "fp16"

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Broadcast rank 0's weights, wrap the optimizer, identify the allreduce. Collective."""
        super().prepare(model, optimizer)
        device = next(model.parameters()).device
        if hvd.nccl_built():
            require_own_gpu(self.group, device)
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        self._given_optimizer = optimizer
        self._optimizer = hvd.DistributedOptimizer(
            optimizer,
            named_parameters=model.named_parameters(),
            compression=self,
            backward_passes_per_step=self.options.gradient_accumulation,
            # Scaled gradients fill fp16's range: their sum over the workers would overflow, their mean does not.
            gradient_predivide_factor=self.group.size if self._sums_scaled_fp16 else 1.0,
        )
        self._watch_gradients(model)

        def allreduce(vector: Tensor) -> Tensor:
            reduced: Tensor = hvd.allreduce(vector.to(device), op=hvd.Sum, name="identify")
            return reduced.cpu()

        self._identify(allreduce, self._message_sizes(), torch_dtype(self.options.wire_dtype))
        return model

    def _message_sizes(self) -> list[int]:
        """Return numbers of elements between those of the smallest gradient alone and of the fullest fusion buffer."""
        numbers = [parameter.numel() for parameter in self._parameters]
        fused = self.options.fusion_threshold_bytes // torch_dtype(self.options.wire_dtype).itemsize
        return message_sizes(min(numbers), max(max(numbers), min(fused, sum(numbers))), self.group.size)

    def compress(self, tensor: Tensor) -> tuple[Tensor, torch.dtype]:
        """Return a gradient in the wire dtype, and count its elements (Horovod's Compressor interface)."""
        self._payload_elements += tensor.numel()
        return tensor.to(torch_dtype(self.options.wire_dtype)), tensor.dtype

    def decompress(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a mean gradient in its own dtype (Horovod's Compressor interface)."""
        return tensor.to(dtype)

    def synchronize(self) -> None:
        """Wait for every allreduce of this step."""
        self._optimizer.synchronize()  # type: ignore[attr-defined]  # Horovod's wrapper adds it
        self._communication_ended()
        self._count_ring(self._payload_elements)
        self._payload_elements = 0

    def _apply(self) -> None:
        with self._optimizer.skip_synchronize():  # type: ignore[attr-defined]
            self._optimizer.step()
        mark_stepped(self._given_optimizer)

    def start_timeline(self) -> None:
        """Let Horovod record on rank 0; HOROVOD_TIMELINE=DYNAMIC must have been set before hvd.init().

        The file is unlinked at once, so none is left behind however this process ends.
        """
        handle, name = tempfile.mkstemp()
        hvd.start_timeline(name)  # returns once Horovod has opened it
        os.unlink(name)
        self._timeline = os.fdopen(handle)

    def stop_timeline(self) -> dict[str, list[Span]]:
        """Return what Horovod did since then, per tensor, on rank 0."""
        if self._timeline is None:
            return {}
        hvd.stop_timeline()  # returns once Horovod has written and closed it
        with self._timeline as file:
            return spans(file.read(), self._epoch_s)

    def close(self) -> None:
        """Wait for the other ranks; Horovod stays initialised, because it can be only once per process. Collective."""
        super().close()
        self._optimizer._grad_accs.clear()  # type: ignore[attr-defined]  # their hooks hold the optimizer
        hvd.barrier()


def small_allreduce_times(options: Options, count: int) -> list[float]:
    """Return the seconds of single allreduces of one number each, over MPI: mostly waiting for a cycle. Collective."""
    os.environ["HOROVOD_CONTROLLER"] = os.environ["HOROVOD_CPU_OPERATIONS"] = "mpi"
    _init(options)
    found, number = [], torch.zeros(1)
    for _ in range(count + 1):  # the first allreduce makes connections
        began = time.perf_counter()
        hvd.allreduce(number, name="small")
        found.append(time.perf_counter() - began)
    hvd.barrier()
    return found[1:]


def _init(options: Options) -> float:
    """Start Horovod; return the time of day less `time.perf_counter()` at that moment, seconds. Collective."""
    _pin_knobs(options)
    hvd.init()
    return time.time() - time.perf_counter()


def _pin_knobs(options: Options) -> None:
    """Set what hvd.init() would otherwise tune, or read from the user's environment."""
    os.environ["HOROVOD_FUSION_THRESHOLD"] = str(options.fusion_threshold_bytes)
    os.environ["HOROVOD_CYCLE_TIME"] = str(options.cycle_time_s * 1000)
    os.environ["HOROVOD_AUTOTUNE"] = "0"
