"""The settings of a published measurement: what each means, its unit, and its default where it has one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from bench.config import BadInput
from bench.config.emulation import MAX_STEP_S
from bench.devices import DEVICES
from bench.links import parse_rate
from bench.predict.published.models import Model
from strategies import catalogue
from strategies.options import Given

Rate = Annotated[float, Field(ge=1e3, le=1e13)]  # bytes per second; outside it has another unit
Samples = Annotated[float, Field(ge=1e-6, le=1e9)]  # per second
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1 << 14)]
ARMS = tuple(kind.name for kind in (catalogue.PARAMETER_SERVER, catalogue.RING_ALLREDUCE, catalogue.FSDP))
WIRE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def _arm(name: str) -> str:
    if name not in ARMS:
        raise ValueError(f"choose one of {', '.join(ARMS)}")
    return name


def _device(name: str) -> str:
    if name not in DEVICES:
        raise ValueError(f"choose one of {', '.join(DEVICES)}")
    return name


Arm = Annotated[str, AfterValidator(_arm)]
Device = Annotated[str, AfterValidator(_device)]


class Settings(Given):
    """How a published number was measured. One of each arm of a comparison."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str
    """A name in models.yaml, or in the file's own section `models`."""
    strategy: Arm
    """What exchanges gradients; ring_allreduce also for Horovod and DDP."""
    num_gpus: Count
    """Workers in all: GPUs, or machines that compute on CPU."""
    gpus_per_node: Count = 1
    """Workers that share a node and its link."""
    batch_size: Count
    """Samples per worker per step."""
    tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    """Tokens of a sample."""
    link: str
    """Nominal rate of a node's link: 25gbit."""
    goodput_share: Share
    """What the transport reaches of the link's nominal rate."""
    process_bytes_per_s: Rate = 1e12
    """What one process moves in each direction, whatever the link [no limit]."""
    local_bytes_per_s: Rate = 1e12
    """Goodput between two workers of a node [no limit]."""
    latency_s: Annotated[float, Field(ge=0, le=1)] = 50e-6
    """One message from process to process."""
    placement: Literal["dedicated", "colocated", "mixed"] = "dedicated"
    """Where servers run: nodes of their own, the workers' nodes, or both."""
    num_servers: Annotated[int, Field(ge=0, le=1 << 14)] | None = None
    """Server processes (colocated), or nodes that only serve (dedicated, mixed)."""
    servers_per_node: Annotated[float, Field(gt=0, le=1 << 14)] | None = None
    """Instead of num_servers: their number over that of the workers' nodes."""
    sharding: Literal["ranges", "tensors"] = "ranges"
    """Whether a server holds an equal share of all numbers, or whole tensors."""
    adds_in_node: bool = False
    """Whether a node's workers add up their gradients before one of them sends; no: a ring passes every worker."""
    pipelined: bool = True
    """Whether pushes and pulls of different parts overlap; no: all pushes, then all pulls."""
    pushes: bool = True
    """Whether gradients are pushed; no: weights are pulled only (forward without backward)."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of the arithmetic: selects the device's peak."""
    wire_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of what travels."""
    single_gpu: Samples | None = None
    """Samples per second of one worker alone, from the same source."""
    compute_s: Annotated[float, Field(ge=0, le=MAX_STEP_S)] | None = None
    """Instead of single_gpu: seconds of forward and backward of a step."""
    device: Device | None = None
    """Instead of both: a device of bench/devices.py, with mfu."""
    mfu: Share | None = None
    """FLOPs that the model needs over the device's peak."""
    compute_cv: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Coefficient of variation of a worker's computing, from step to step."""

    @property
    def kind(self) -> catalogue.Entry:
        """What psring knows of the strategy."""
        return catalogue.find(self.strategy)

    @property
    def num_nodes(self) -> int:
        """Nodes with workers."""
        return -(-self.num_gpus // self.gpus_per_node)

    @property
    def workers_per_node(self) -> int:
        """Workers of a full node."""
        return min(self.num_gpus, self.gpus_per_node)

    @property
    def servers(self) -> int:
        """Number of servers; BadInput if nothing says it."""
        if not self.kind.has_servers:
            return 0
        if self.num_servers is not None:
            return self.num_servers
        if self.servers_per_node is None:
            raise BadInput("num_servers is missing; state it, or servers_per_node, or a range for it")
        return max(1, round(self.servers_per_node * self.num_nodes))

    @property
    def link_bytes_per_s(self) -> float:
        """Goodput of a node's link in each direction."""
        return parse_rate(self.link) / 8 * self.goodput_share

    def step_compute_s(self, model: Model) -> float:
        """Seconds of one worker's forward and backward; BadInput if nothing says it."""
        if self.compute_s is not None:
            return self.compute_s
        if self.single_gpu is not None:
            return self.batch_size / self.single_gpu
        if self.device is None or self.mfu is None:
            raise BadInput("nothing says how fast a worker computes; state single_gpu, compute_s, or device and mfu")
        if self.precision not in DEVICES[self.device].peak_flops_per_s:
            raise BadInput(f"device: no peak of {self.device!r} in {self.precision}; state another precision")
        peak = DEVICES[self.device].peak_flops_per_s[self.precision]
        return 3 * model.forward_flops(self.tokens) * self.batch_size / (peak * self.mfu)
