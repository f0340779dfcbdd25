"""The knobs that strategies read, each declared once: type, default, bounds and meaning.

The harness's RunConfig extends `Options`, so a run's configuration is what its strategy is created with.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

NumberFormat = Literal["fp32", "bf16", "fp16"]
# Upper bounds of knobs: beyond what machines have, and below what the libraries' own integers and clocks hold.
MAX_RANKS = 1 << 14
MAX_COUNT = 10**9
MAX_MESSAGE_BYTES = 1 << 29  # MPI counts bytes in 31 bits, and weights may be twice as wide as gradients
MAX_BUFFER_BYTES = 1 << 30
MAX_BYTES = 1 << 40
MAX_FACTOR = 1e12
MAX_TEXT = 4096


class Unit(NamedTuple):
    """The unit of a field, for the dictionary of columns, where the field's name does not say it."""

    name: str


class Given(BaseModel):
    """Values that a user gives: no unknown names, finite numbers that are no booleans, printable text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, (bool, str)) and name in cls.model_fields:
                annotation = cls.model_fields[name].annotation
                problem = _problem(value, {annotation, *get_args(annotation)})
                if problem:
                    raise ValueError(f"{name}: {problem}")
        return values


def _problem(value: bool | str, types: set[Any]) -> str | None:
    """Return why a boolean or a text cannot be the value of a field of these types, None if it can."""
    if isinstance(value, bool):
        return None if bool in types else f"{str(value).lower()} is neither a number nor a word"
    if len(value) > MAX_TEXT:
        return f"a text of {len(value)} characters; at most {MAX_TEXT} are read"
    if not value.isprintable():
        return f"{value!a} has a character that cannot be printed; leave it out"
    if types & {int, float} and re.match(r"\s*[-+]?0[\d_]", value):
        return f"{value!r} is octal for some readers; write it without the leading 0"
    return None


def _none(value: object) -> object:
    return None if value == "none" else value


OrNone = BeforeValidator(_none)  # the word none is None, so that a flag can say it where None is not the default


class Knobs(Given):
    """A group of knobs, each declared with its bounds; its docstrings are help texts."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class TopologyOptions(Knobs):
    """Which ranks serve parameters, and which of them wait for which."""

    num_servers: Annotated[int, Unit("ranks")] = Field(0, ge=0, le=MAX_RANKS)
    """Ranks that only serve parameters (parameter_server); they are the last ranks of the world. Not given:
    1 for dedicated servers."""
    placement: Literal["dedicated", "colocated", "mixed"] = "dedicated"
    """Where parameters are served; dedicated: on num_servers ranks of their own; colocated: on every worker's rank,
    an equal shard each; mixed: on both, split so that all links carry the same bytes."""
    sharding: Literal["ranges", "tensors"] = "ranges"
    """What a server holds; ranges: the same share of every part of the model; tensors: whole tensors, the largest
    placed first, each on the server with the least, as TensorFlow and MXNet do: the largest tensor (a GPT's token
    embedding) may then overload a server."""
    consistency: Literal["bsp", "asp", "ssp"] = "bsp"
    """Which workers wait; bsp: an update holds every worker's gradient of the same step; asp: each gradient is an
    update of its own, scaled by 1/num_workers, and no worker waits; ssp: as asp, within a bound (staleness)."""
    staleness: Annotated[int, Unit("steps")] = Field(0, ge=0, le=MAX_COUNT)
    """Steps that the weights a worker receives may be ahead of the slowest worker (ssp); with 0 ssp is bsp."""
    server_role: Literal["update", "sum"] = "update"
    """What servers return; update: they run the optimizer and return weights; sum: they return the mean gradient, and
    every worker runs the optimizer."""
    sync_every: Annotated[int, Unit("steps")] = Field(1, ge=1, le=MAX_COUNT)
    """Local steps of a worker between two pushes of the change of its weights (parameter_server); 1: gradients are
    pushed in every step."""
    outer_learning_rate: float = Field(0.7, gt=0, le=MAX_FACTOR)
    """Step size of the servers' update with the mean change of the workers' weights (sync_every above 1); 1 without
    outer_momentum is local SGD, the mean of the workers' weights."""
    outer_momentum: float = Field(0.9, ge=0, lt=1)
    """Nesterov momentum of that update; 0.9 with 0.7 is DiLoCo."""

    @property
    def synchronous(self) -> bool:
        """Whether every update holds every worker's gradient of the same step."""
        return self.staleness_bound == 0

    @property
    def staleness_bound(self) -> float:
        """Steps that the weights a worker receives may be ahead of the slowest worker; 0 for bsp, infinity for asp."""
        return {"bsp": 0, "ssp": self.staleness, "asp": math.inf}[self.consistency]


class GradientOptions(Knobs):
    """What happens to a gradient between backward and the update."""

    gradient_accumulation: Annotated[int, Unit("passes")] = Field(1, ge=1, le=MAX_COUNT)
    """Forward-backward passes that a worker's batch is split into before one update."""
    precision: NumberFormat = "fp32"
    """Number format of forward and backward (autocast; fp16 with dynamic loss scaling)."""
    clip_norm: float | None = Field(None, gt=0, le=MAX_FACTOR)
    """Largest global L2 norm of the mean gradient; none: no clipping."""

    @property
    def loss_scaling(self) -> bool:
        """Whether the loss is scaled against underflow of fp16 gradients."""
        return self.precision == "fp16"


class WireOptions(Knobs):
    """How gradients and weights are encoded and cut into messages."""

    wire_dtype: NumberFormat = "fp32"
    """Number format of what travels between ranks."""
    compression: Literal["none", "topk", "int8", "onebit"] = "none"
    """Encoding of gradients, and of what a parameter_server returns; topk: the largest numbers with their indices;
    int8, onebit: 8 bits or 1 bit per number and one scale per 1024. The error is kept as residual and sent later."""
    topk_ratio: float = Field(0.01, gt=0, le=1)
    """Share of the numbers of each message that topk sends."""
    chunk_bytes: int = Field(60_000, ge=1024, le=MAX_MESSAGE_BYTES)
    """Largest message of a push or a pull before compression, bytes, within one number. Over TCP Open MPI sends
    messages up to 64 KiB eagerly; larger ones wait for the receiver's answer, which queues behind other data."""
    schedule: Literal["fifo", "priority"] = "fifo"
    """Order in which gradients are pushed; fifo: as backward finishes them; priority: those of the layers first whose
    weights the next forward reads first."""
    window_bytes: Annotated[int | None, OrNone] = Field(400_000, ge=1, le=MAX_BYTES)
    """Most bytes that a worker has in flight to servers, so that workers share a server's link evenly and priority can
    overtake; give more on links beyond 10 Gbit/s; none: no limit."""
    shared_memory: Annotated[bool, Unit("true or false")] = True
    """Whether workers and servers of one node read each other's messages in shared memory, if /dev/shm has room and no
    GPU is involved; false: they are sent like those to other nodes."""
    poll_s: float = Field(0.0, ge=0, le=3600)
    """How long after the last message a waiting rank of the parameter server polls before it sleeps, seconds; 0: it
    sleeps at once, which suits ranks that share cores."""
    segment_bytes: int = Field(64 << 10, ge=64, le=MAX_MESSAGE_BYTES)
    """Largest message of mpi_ring and zero, bytes; a bucket has one such message per worker."""
    fusion_threshold_bytes: int = Field(128 << 20, ge=0, le=MAX_BUFFER_BYTES)
    """Horovod's fusion buffer (HOROVOD_FUSION_THRESHOLD), bytes."""
    cycle_time_s: float = Field(0.001, gt=0, le=60)
    """Horovod's cycle time, between two rounds of its negotiation (HOROVOD_CYCLE_TIME), seconds."""
    reshard_after_forward: Annotated[bool, Unit("true or false")] = True
    """Whether fsdp frees a block's gathered weights after its forward and gathers them again for its backward (ZeRO
    stage 3); false: they stay until its backward has used them (ZeRO stage 2)."""
    bucket_bytes: int = Field(25 << 20, ge=1, le=MAX_BUFFER_BYTES)
    """Largest gradient bucket of ddp, bytes."""


class ModelParallelOptions(Knobs):
    """How one copy of the model is split among ranks."""

    model_parallel_size: Annotated[int, Unit("ranks")] = Field(1, ge=1, le=MAX_RANKS)
    """Ranks that hold one copy of the model together (pipeline, tensor_parallel). num_workers / model_parallel_size
    copies train data-parallel, batch_size sequences each. Not given: all workers hold one copy."""
    num_micro_batches: Annotated[int, Unit("micro-batches")] = Field(1, ge=1, le=MAX_COUNT)
    """Equal parts into which a pipeline cuts the sequences of one pass, so that its stages compute at the same time.
    Not given: as many as stages."""
    pipeline_schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """Order of a pipeline's work; gpipe: all forward passes, then all backward passes; 1f1b: one forward, one backward
    as early as possible, so that a stage keeps the activations of at most as many micro-batches as there are stages."""
    between_copies: Literal["allreduce", "servers"] = "allreduce"
    """What takes the mean of the copies' gradients; allreduce: as in ddp, after the last backward pass;
    servers: parameter servers on the ranks that hold the same part, which sum; workers run the optimizer."""
    sequence_parallel: Annotated[bool, Unit("true or false")] = False
    """Whether the ranks of tensor_parallel divide the tokens among them where they do not divide layers: they then keep
    a part of those activations, and the sum of activations becomes a reduce-scatter and an all-gather."""


# pydantic orders fields from the last base to the first.
class Options(ModelParallelOptions, WireOptions, GradientOptions, TopologyOptions):
    """What a strategy must know beyond the model and the optimizer."""

    @property
    def needs_norm(self) -> bool:
        """Whether servers may update no parameter before the norm of the whole gradient is known."""
        gradients_travel = self.server_role == "update" and self.sync_every == 1
        return gradients_travel and (self.clip_norm is not None or self.loss_scaling)


# What strategies read; an entry of the catalogue says which of them its strategy does.
STRATEGY_KNOBS = TopologyOptions.model_fields | WireOptions.model_fields | ModelParallelOptions.model_fields


class _Format(NamedTuple):
    torch_name: str
    nbytes: int


NUMBER_FORMATS: dict[str, _Format] = {
    "fp32": _Format("float32", 4),
    "bf16": _Format("bfloat16", 2),
    "fp16": _Format("float16", 2),
}
NUMBERS_PER_SCALE = 1024  # that share one fp32 scale, of compression int8 and onebit
