"""Every strategy, declared once: its name and properties that are known without running it. No torch.

A user's own strategy is named `package.module:Class`; what its class defines of an entry's fields (as class
attributes of the same names) is its entry, the defaults hold for the rest.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, Literal

from strategies import closed_forms
from strategies.closed_forms import ClosedForm

ENTRY_POINTS = "psring.strategies"
NONE, RING, PARAMETER_SERVER_FAMILY, SHARDED, OTHER = "none", "ring", "parameter server", "sharded", "other"
SPARE_COLOURS = ("#882255", "#117733", "#332288", "#999933", "#aa4499")
SERVER_KNOBS = (
    "num_servers", "placement", "sharding", "consistency", "staleness", "server_role", "sync_every",
    "outer_learning_rate", "outer_momentum", "wire_dtype", "compression", "topk_ratio", "chunk_bytes", "schedule",
    "window_bytes", "shared_memory", "poll_s",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """The properties of a strategy."""

    name: str
    path: str  # "package.module:Class", or a function of (group, options) that returns this rank's strategy
    title: str = ""  # in figures and tables
    phrase: str = ""  # in sentences
    summary: str = ""  # in help
    family: str = OTHER  # what carries the gradients; reports compare "ring" with "parameter server"
    colour: str = ""
    launchers: tuple[str, ...] = ("mpirun", "srun")
    single_process: bool = False  # runs on one rank only
    exact: bool = False  # promises the model that one process would train; every worker then holds it
    # Each weight is updated on one rank, unless server_role is sum, and forward waits for those of each layer.
    streams_weights: bool = False
    gathers_weights: bool = False  # passes gather the weights that they read, and free them
    knobs: tuple[str, ...] = ()  # of topology and wire that it reads
    tunes: str = ""  # the knob that its speed depends on most
    sizes: tuple[int, ...] = ()  # that `psring tune` tries for it beside the default, bytes
    message_knob: str = ""  # the size of its messages, if they are sent by MPI point to point
    process_knobs: tuple[str, ...] = ()  # that its library reads once in a process
    closed_form: ClosedForm | None = None  # none: nothing is predicted
    # How gradients become messages: "none"; one allreduce per "segments" (equal ranges, several in flight), "fusion"
    # (all gradients that are ready) or "buckets" (whole tensors up to a size); "push_pull"; an allreduce in "halves",
    # with the update between them; "gathers" of weights in every pass; "stages" of a pipeline; "sums" of activations in
    # every block; empty: not predicted
    exchange: str = ""
    splits: Literal["", "layers", "heads"] = ""  # what of the model is divided among ranks; nothing: each holds it all
    # "counted": as messages moved; "inferred": a number of elements times a formula, because its library hides messages
    bytes_counted_by: str = "counted"
    unsupported: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (knob, value): why not
    group_path: str = ""  # of the Group by which ranks communicate where its launcher brings no MPI
    timeline_environment: Mapping[str, str] = field(default_factory=dict)  # so that its library can keep a timeline

    @property
    def communicates(self) -> bool:
        """Whether its workers exchange anything."""
        return self.family != NONE

    @property
    def has_servers(self) -> bool:
        """Whether some ranks serve parameters."""
        return self.family == PARAMETER_SERVER_FAMILY

    @property
    def trains_one_model(self) -> bool:
        """Whether all workers work on the same model."""
        return self.exact or self.communicates


LOCAL = Entry(
    name="local",
    path="strategies.local:Local",
    title="local",
    summary="one worker",
    family=NONE,
    colour="#1b1b1f",
    single_process=True,
    exact=True,
    closed_form=closed_forms.nothing,
    exchange="none",
)
INDEPENDENT = Entry(
    name="independent",
    path="strategies.independent:Independent",
    title="independent workers",
    summary="workers that never communicate: the upper bound",
    family=NONE,
    colour="#8c8c8c",
    closed_form=closed_forms.nothing,
    exchange="none",
)
PARAMETER_SERVER = Entry(
    name="parameter_server",
    path="strategies.parameter_server:create_parameter_server",
    title="parameter server",
    family=PARAMETER_SERVER_FAMILY,
    colour="#d55e00",
    exact=True,
    streams_weights=True,
    knobs=SERVER_KNOBS,
    tunes="chunk_bytes",
    sizes=(16 << 10, 60_000, 256 << 10, 1 << 20, 4 << 20),
    message_knob="chunk_bytes",
    closed_form=closed_forms.push_pull,
    exchange="push_pull",
)
RING_ALLREDUCE = Entry(
    name="ring_allreduce",
    path="strategies.ring_allreduce:RingAllreduce",
    title="Horovod ring",
    phrase="Horovod's ring",
    summary="Horovod",
    family=RING,
    colour="#0072b2",
    launchers=("mpirun", "srun", "horovodrun"),
    exact=True,
    knobs=("wire_dtype", "fusion_threshold_bytes", "cycle_time_s"),
    tunes="fusion_threshold_bytes",
    sizes=(1 << 20, 8 << 20, 128 << 20),
    process_knobs=("fusion_threshold_bytes", "cycle_time_s"),
    closed_form=closed_forms.horovod_ring,
    bytes_counted_by="inferred",
    unsupported={
        ("wire_dtype", "bf16"): "Horovod 0.28 has no bf16 reduction in its PyTorch binding; use wire_dtype fp32 or fp16"
    },
    group_path="strategies.ring_allreduce:HorovodGroup",
    # Horovod then records on demand; its writer thread busy-waits on rank 0 from the start.
    timeline_environment={"HOROVOD_TIMELINE": "DYNAMIC"},
    exchange="fusion",
)
MPI_RING = Entry(
    name="mpi_ring",
    path="strategies.mpi_ring:MPIRing",
    title="mpi4py ring",
    phrase="the mpi4py ring",
    summary="the same ring on mpi4py",
    family=RING,
    colour="#56b4e9",
    exact=True,
    knobs=("wire_dtype", "segment_bytes"),
    tunes="segment_bytes",
    sizes=(16 << 10, 64 << 10, 256 << 10, 1 << 20),
    message_knob="segment_bytes",
    closed_form=closed_forms.own_ring,
    exchange="segments",
)
DDP = Entry(
    name="ddp",
    path="strategies.ddp:DDP",
    title="PyTorch DDP",
    summary="PyTorch DistributedDataParallel",
    family="library allreduce",
    colour="#009e73",
    exact=True,
    knobs=("wire_dtype", "bucket_bytes"),
    tunes="bucket_bytes",
    sizes=(1 << 20, 5 << 20, 25 << 20),
    closed_form=closed_forms.ddp_ring,
    bytes_counted_by="inferred",
    exchange="buckets",
)
ZERO = Entry(
    name="zero",
    path="strategies.zero:Zero",
    title="mpi4py ZeRO",
    phrase="ZeRO on mpi4py",
    summary="a sharded optimizer on mpi4py: the ring's reduce-scatter, the update of the own shard, its all-gather",
    family=SHARDED,
    colour="#cc79a7",
    exact=True,
    streams_weights=True,
    knobs=("wire_dtype", "segment_bytes"),
    tunes="segment_bytes",
    sizes=(16 << 10, 64 << 10, 256 << 10, 1 << 20),
    message_knob="segment_bytes",
    closed_form=closed_forms.zero_ring,
    exchange="halves",
)
FSDP = Entry(
    name="fsdp",
    path="strategies.fsdp:FSDP",
    title="PyTorch FSDP2",
    summary="PyTorch FSDP2: weights, gradients and optimizer state divided among the ranks",
    family=SHARDED,
    colour="#e69f00",
    exact=True,
    gathers_weights=True,
    knobs=("wire_dtype", "reshard_after_forward"),
    closed_form=closed_forms.fsdp,
    exchange="gathers",
    bytes_counted_by="inferred",
)
PIPELINE = Entry(
    name="pipeline",
    path="strategies.pipeline:Pipeline",
    title="pipeline",
    phrase="the pipeline",
    summary="the model's layers split among ranks, torch.distributed.pipelining",
    family="model parallel",
    colour="#7a4b94",
    exact=True,
    knobs=("model_parallel_size", "num_micro_batches", "pipeline_schedule", "between_copies"),
    closed_form=closed_forms.pipeline,
    exchange="stages",
    splits="layers",
)
TENSOR_PARALLEL = Entry(
    name="tensor_parallel",
    path="strategies.tensor_parallel:TensorParallel",
    title="tensor parallel",
    phrase="tensor parallelism",
    summary="every linear layer's columns or rows split among ranks, torch's parallelize_module",
    family="model parallel",
    colour="#a6761d",
    exact=True,
    knobs=("model_parallel_size", "sequence_parallel", "between_copies"),
    closed_form=closed_forms.tensor_parallel,
    exchange="sums",
    bytes_counted_by="inferred",
    splits="heads",
    unsupported={
        ("precision", "bf16"): "tensor_parallel would round partial sums to bf16 before they are added; use fp32",
        ("precision", "fp16"): "tensor_parallel would round partial sums to fp16 before they are added; use fp32",
    },
)
CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        LOCAL, INDEPENDENT, PARAMETER_SERVER, RING_ALLREDUCE, MPI_RING, DDP, ZERO, FSDP, PIPELINE, TENSOR_PARALLEL,
    )
}  # fmt: skip


def full_name(name: str) -> str:
    """Return a catalogue name as it is, an entry point's as `package.module:Class`; ValueError for another word."""
    if name in CATALOGUE or ":" in name:
        return name
    installed = entry_points(group=ENTRY_POINTS)
    if name in installed.names:
        return str(installed[name].value)
    close = difflib.get_close_matches(name, [*CATALOGUE, *installed.names], n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join([*CATALOGUE, *installed.names])}"
    raise ValueError(f"no strategy is called {name!r}; {hint}")


@lru_cache
def find(name: str) -> Entry:
    """Return a strategy's entry; a user's own that cannot be imported has the defaults."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    try:
        # A results folder may name anything; importing some modules of the standard library starts programs.
        found: object = None if name.partition(".")[0].partition(":")[0] in sys.stdlib_module_names else load(name)
    except Exception:  # its module may do anything; a record must stay readable without it
        found = None
    given: dict[str, Any] = {f.name: getattr(found, f.name) for f in fields(Entry) if hasattr(found, f.name)}
    given |= {"name": name, "path": name}
    given["title"] = given.get("title") or name.partition(":")[2]
    given["phrase"] = given.get("phrase") or given["title"]
    given["colour"] = given.get("colour") or SPARE_COLOURS[zlib.crc32(name.encode()) % len(SPARE_COLOURS)]
    return Entry(**given)


def load(path: str) -> Any:
    """Import what `package.module:Name` names; ImportError or AttributeError if there is no such thing."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def check(name: str) -> None:
    """Import the class that `package.module:Class` names; ValueError says why it is no strategy."""
    if name in CATALOGUE:
        return
    from strategies.base import Strategy

    module, _, word = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), word, None)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{module!r} cannot be imported ({said}); install it, or set PYTHONPATH") from None
    if found is None:
        raise ValueError(f"{module} has no {word!r}; write package.module:Class")
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise ValueError(f"{name} is no subclass of strategies.base.Strategy; derive it from that class")
    if inspect.isabstract(found):
        raise ValueError(f"{name} does not define {', '.join(sorted(found.__abstractmethods__))}; define it")


def order(name: str) -> int:
    """Return the place of a strategy in tables and figures: the catalogue's order, then all others."""
    return list(CATALOGUE).index(name) if name in CATALOGUE else len(CATALOGUE)
