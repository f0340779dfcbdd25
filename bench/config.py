"""RunConfig, the one value that describes a run.

A knob has one spelling everywhere: the field here, the YAML key, the ``--flag``, the JSON key and the
table column. Its docstring is its only definition and its unit.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bench.shape import PRESETS, GPTShape

StrategyName = Literal["local", "independent", "parameter_server", "ring_allreduce", "mpi_ring", "ddp"]
Dtype = Literal["fp32", "bf16", "fp16"]

DTYPE_BYTES: dict[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
# More than a link of 10 Gbit/s holds in 0.2 ms, less than the queue of a slow one.
DEFAULT_SOCKET_BYTES = 256 << 10
NUMBERS_PER_SCALE = 1024  # of compression: int8 and onebit
# Knobs that only a sleeping worker reads.
EMULATION: tuple[str, ...] = (
    "compute_from", "device_model", "device_mfu", "emulated_forward_s", "emulated_backward_s", "emulated_optimizer_s",
    "speed_factor", "compute_cv", "target",
)  # fmt: skip
COMMUNICATING: tuple[str, ...] = ("parameter_server", "ring_allreduce", "mpi_ring", "ddp")

# Training is chaotic: runs that differ by rounding drift apart faster and faster. The equivalence gate stands early.
GATE_STEPS = 10
# Runs that do not promise one process's model must let the held-out loss fall at least this share of its fall.
LEAST_CONVERGENCE = 0.8
# Names the emulated cluster on whose nodes a process and its children run.
CLUSTER_VARIABLE = "PSRING_CLUSTER"


class BadInput(Exception):
    """What the user asked for cannot be done: one line that says what, where, and how to mend it."""


class AgreedBadInput(BadInput):
    """BadInput that every rank of a run raises alike: one of them says it for all."""


class DiskFull(Exception):
    """Nothing more can be written; what was written is whole."""


class RunConfig(BaseModel):
    """One run, frozen and validated. Every rank of a run holds an equal one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    strategy: StrategyName = "local"
    """How gradients become one update: local (one worker), independent (workers that never talk: the
    ceiling), parameter_server, ring_allreduce (Horovod), mpi_ring (the same ring on mpi4py), ddp (PyTorch
    DistributedDataParallel)."""
    num_workers: int = Field(1, ge=1)
    """Ranks that train. Under a launcher: its world size less num_servers."""
    num_servers: int = Field(0, ge=0)
    """Ranks that only serve parameters (parameter_server); they are the last ranks of the world."""
    placement: Literal["dedicated", "colocated", "mixed"] = "dedicated"
    """Where parameters are served: dedicated (on num_servers ranks of their own), colocated (on every worker's rank,
    an equal shard each), mixed (both, split so that all links carry the same)."""
    consistency: Literal["bsp", "asp", "ssp"] = "bsp"
    """Who waits for whom; bsp: every update holds every worker's gradient of the same step; asp: each worker's gradient
    is an update of its own (of a W-th the length) and nobody waits; ssp: as asp, within a bound (staleness)."""
    staleness: int = Field(0, ge=0)
    """Steps that a worker may be given weights ahead of the slowest (ssp); with 0 ssp is bsp."""

    server_role: Literal["update", "sum"] = "update"
    """What servers do with the sum of the gradients; update: they hold the optimizer and return weights; sum: they
    return the mean gradient, and every worker runs the optimizer."""

    compression: Literal["none", "topk", "int8", "onebit"] = "none"
    """What travels of a gradient, and of the change of the weights (or the mean gradient) that comes back from a
    parameter_server; topk: its largest numbers with their places; int8, onebit: 8 bits or 1 of each, and a scale per
    1024. What is left out is sent later (error feedback)."""
    topk_ratio: float = Field(0.01, gt=0, le=1)
    """Share of the numbers of each message that topk sends."""
    sync_every: int = Field(1, ge=1)
    """Steps that a worker trains alone before it pushes how far its weights have moved (parameter_server); 1: none,
    gradients are pushed in every step."""
    outer_learning_rate: float = Field(0.7, gt=0)
    """Step size of the servers' update with what workers have moved (sync_every above 1); 1 without outer_momentum is
    local SGD, the mean of the workers' weights."""
    outer_momentum: float = Field(0.9, ge=0, lt=1)
    """Nesterov momentum of that update; 0.9 with 0.7 is DiLoCo."""

    launcher: Literal["none", "mpirun", "horovodrun", "srun"] = "mpirun"
    """What starts the ranks of a sweep; under `psring run` it is found out. One rank alone needs none."""
    hostfile: str | None = None
    """Host file handed to the launcher; none: this machine only."""
    network_interface: str | None = None
    """Interface (eth0) or network (10.0.0.0/24, mpirun only) that carries the traffic; none: the launcher's choice."""
    link: str | None = None
    """Rate of each emulated node's link, both directions: 200mbit, or per node n0=1gbit,server=500mbit,*=50mbit;
    none: no emulated cluster. One rank per node; under `psring cluster exec` it is found out."""
    delay: str | None = None
    """One-way delay of each emulated link (2ms; needs the kernel's netem); none: the machine's own."""
    congestion_control: Literal["reno", "cubic"] = "reno"
    """Congestion control of the emulated nodes' TCP."""
    patience_s: float = Field(20.0, ge=0)
    """Emulated nodes: longest wait of a run for others to leave this machine's cores and links alone, seconds."""

    model: Literal["gpt-nano", "gpt-micro", "gpt-mini", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = "gpt-nano"
    """Preset GPT; the next five fields override its dimensions one by one."""
    n_layer: int | None = Field(None, ge=1)
    """Transformer blocks; none: the preset's."""
    n_head: int | None = Field(None, ge=1)
    """Attention heads per block; none: the preset's."""
    n_embd: int | None = Field(None, ge=1)
    """Width of the residual stream; none: the preset's."""
    vocab_size: int | None = Field(None, ge=2)
    """Number of distinct tokens; none: the preset's."""
    block_size: int | None = Field(None, ge=1)
    """Tokens per sequence; none: the preset's."""

    data: str = "stdlib"
    """Tokens: stdlib (this Python's own sources, byte by byte), synthetic, or a nanoGPT .bin file."""
    batch_size: int = Field(8, ge=1)
    """Sequences per worker per step."""
    gradient_accumulation: int = Field(1, ge=1)
    """Forward-backward passes a worker's batch is split into before one update."""
    seed: int = Field(1337, ge=0)
    """Seed of the initial weights and of the order of the data."""

    precision: Dtype = "fp32"
    """Arithmetic of forward and backward (autocast; fp16 with dynamic loss scaling)."""
    wire_dtype: Dtype = "fp32"
    """Number format of what travels between ranks."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Update rule; on the servers under parameter_server, on every worker otherwise."""
    learning_rate: float = Field(1e-3, gt=0)
    """Step size of the optimizer, constant."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd; adamw uses its betas 0.9 and 0.95."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of the weight matrices and embeddings; biases and layer norms never decay."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest global L2 norm of the mean gradient; none: no clipping."""

    steps: int = Field(20, ge=1)
    """Measured optimizer steps, after the warm-up."""
    warmup_steps: int = Field(5, ge=0)
    """Optimizer steps before the measured ones: stored, flagged, never counted."""
    eval_batches: int = Field(2, ge=0)
    """Held-out batches for held_out_loss after the last step."""
    compute: Literal["real", "emulated", "none"] = "real"
    """Where the time between messages comes from; real: the GPT is really trained; emulated: workers sleep as long
    as each layer takes and compute nothing; none: communication alone."""
    compute_from: str | None = None
    """Emulated compute: the file of `psring calibrate` that holds the time of every layer."""
    device_model: Literal["v100", "a100", "h100", "h200"] | None = None
    """Emulated compute: device whose data sheet gives the time of every layer, FLOPs / (peak × device_mfu)."""
    device_mfu: float | None = Field(None, gt=0, le=1)
    """Share of device_model's peak rate that forward and backward reach."""
    emulated_forward_s: float | None = Field(None, ge=0)
    """Emulated compute: all forward passes of one step, seconds; shared among the layers by their FLOPs."""
    emulated_backward_s: float | None = Field(None, ge=0)
    """Emulated compute: all backward passes of one step, seconds; shared among the layers by their FLOPs."""
    emulated_optimizer_s: float | None = Field(None, ge=0)
    """Emulated compute: the optimizer's update where workers run it, seconds; none, beside the two above: 0."""
    speed_factor: str | None = None
    """Emulated compute: workers that are not of speed 1, as '3=0.5' (worker 3 takes twice as long) or '0=2,*=0.8'."""
    compute_cv: float = Field(0.0, ge=0)
    """Emulated compute: coefficient of variation of a worker's step (lognormal, mean kept, seeded)."""
    target: str | None = None
    """Cluster that this run is a scale model of, as `psring scale-model` writes it down; none: it is none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the workers compute; auto: a GPU per local rank where CUDA is, else the CPU."""
    num_threads: int = Field(1, ge=1)
    """Intra-op CPU threads per rank; equal at every world size, so that scaling compares like with like."""
    peak_flops_per_s: float | None = Field(None, gt=0)
    """Peak arithmetic rate of one worker's device, for mfu; none: known GPUs only, else blank."""

    chunk_bytes: int = Field(60_000, ge=1024)
    """Largest message of a push or a pull before its compression, bytes, within one number. Open MPI sends up to 64 KiB
    at once over TCP; for more it asks the receiver first, whose answer waits behind the data that go its way."""
    schedule: Literal["fifo", "priority"] = "fifo"
    """In which order ready gradients leave for their servers; fifo: as backward finishes them; priority: those first
    whose weights the next forward needs first."""
    window_bytes: int | None = Field(400_000, ge=1)
    """Most bytes that a worker has on their way to servers, so that workers share a server's link evenly and priority
    can overtake; give more on links beyond 10 Gbit/s; none: no limit."""
    socket_bytes: int | None = Field(DEFAULT_SOCKET_BYTES, ge=4096, le=1 << 30)
    """Buffer that the kernel is asked for at each end of Open MPI's TCP connections, each way, bytes; none: its own,
    which grows: faster beyond 10 Gbit/s, but it fills the queue of a slow link."""
    eager_limit_bytes: int | None = Field(None, ge=1024, le=1 << 30)
    """Largest message that Open MPI sends over TCP without asking its receiver first (btl_tcp_eager_limit), who copies
    it once more than one that it was asked for; none: its own, 64 KiB."""
    shared_memory: bool = True
    """Whether workers and servers of one node read each other's messages where they lie, if /dev/shm holds them and no
    GPU is in it; false: they are sent like those to other nodes."""
    poll_s: float = Field(0.0, ge=0)
    """How long after the last message a rank of the parameter server that only waits polls before it naps, seconds; 0:
    not at all, for where ranks share cores somebody else may compute."""
    segment_bytes: int = Field(64 << 10, ge=64)
    """Largest message of mpi_ring, bytes; a bucket of it has one such message per worker."""
    fusion_threshold_bytes: int = Field(128 << 20, ge=0)
    """Horovod's fusion buffer (HOROVOD_FUSION_THRESHOLD), bytes."""
    cycle_time_s: float = Field(0.001, gt=0)
    """Pause between two rounds of Horovod's negotiation (HOROVOD_CYCLE_TIME), seconds."""
    bucket_bytes: int = Field(25 << 20, ge=1)
    """Largest gradient bucket of ddp, bytes."""
    tuned: str | None = None
    """File of `psring tune` whose knobs for this strategy hold where none is given; none: the defaults."""

    check_equivalence: bool = False
    """Afterwards, train one process on the concatenated batches and compare the weights after 10 steps; where a run
    does not promise them (asp, ssp, compression, sync_every): how far the held-out loss has fallen."""
    timeout_s: float = Field(600.0, gt=0)
    """Deadline of the whole run; past it every rank prints its Python stack and ends."""

    @field_validator("window_bytes", "socket_bytes", "eager_limit_bytes", mode="before")
    @classmethod
    def _no_limit(cls, value: object) -> object:
        return None if value == "none" else value

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        self._has_its_servers()
        self._keeps_what_it_promises()
        self._saves_bytes_where_it_can()
        if self.strategy == "local" and self.num_workers != 1:
            raise ValueError("num_workers: local is one worker; for several use independent")
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size: {self.batch_size} does not divide into gradient_accumulation: "
                f"{self.gradient_accumulation} equal parts; choose a multiple"
            )
        if self.gpt.n_embd % self.gpt.n_head:
            raise ValueError(f"n_embd: {self.gpt.n_embd} does not divide into n_head: {self.gpt.n_head} heads")
        if self.launcher == "none" and self.world_size > 1:
            raise ValueError(f"launcher: {self.world_size} ranks need one; use launcher: mpirun")
        if self.link is None and (self.delay or self.congestion_control != "reno"):
            raise ValueError("delay and congestion_control belong to emulated nodes; give a link (link: 200mbit)")
        if self.link and (self.hostfile or self.network_interface):
            raise ValueError("link: emulated nodes have their own hosts; leave hostfile and network_interface out")
        if self.launcher == "horovodrun" and self.strategy in ("parameter_server", "mpi_ring", "ddp"):
            raise ValueError(f"launcher: horovodrun cannot start {self.strategy}; use launcher: mpirun")
        if self.launcher == "srun" and (self.hostfile or self.link):
            raise ValueError("launcher: srun starts ranks on the job's own nodes; leave hostfile and link out")
        return self

    @model_validator(mode="after")
    def _says_how_long_to_sleep(self) -> RunConfig:
        if self.check_equivalence and self.compute != "real":
            raise ValueError(
                f"check_equivalence: compute: {self.compute} trains nothing; use compute: real, or leave it out"
            )
        if self.check_equivalence and not self.exact and not self.eval_batches:
            raise ValueError("check_equivalence: it compares held-out losses here; give eval_batches: 2")
        if self.compute != "emulated":
            given = [name for name in EMULATION if getattr(self, name) != RunConfig.model_fields[name].default]
            if given:
                raise ValueError(
                    f"{given[0]}: compute: {self.compute} does not sleep; use compute: emulated, or leave it out"
                )
            return self
        sources: dict[str, list[object]] = {
            "compute_from": [self.compute_from],
            "device_model and device_mfu": [self.device_model, self.device_mfu],
            "emulated_forward_s and emulated_backward_s": [self.emulated_forward_s, self.emulated_backward_s],
        }
        begun = [name for name, values in sources.items() if any(value is not None for value in values)]
        if len(begun) != 1 or None in sources[begun[0]]:
            raise ValueError(f"compute: emulated takes its times from exactly one of: {'; '.join(sources)}")
        if self.emulated_optimizer_s is not None and self.emulated_forward_s is None:
            raise ValueError(f"emulated_optimizer_s: {begun[0]} says it already; leave it out")
        parse_speeds(self.speed_factor, self.num_workers)
        return self

    def _keeps_what_it_promises(self) -> None:
        if self.consistency != "bsp" and self.strategy != "parameter_server":
            raise ValueError(f"consistency: {self.consistency} needs a parameter_server; use bsp with {self.strategy}")
        if self.staleness and self.consistency != "ssp":
            raise ValueError(f"staleness: only ssp has a bound; leave it out with consistency: {self.consistency}")
        if not self.synchronous and self.server_role == "sum":
            raise ValueError(f"server_role: {self.consistency} has no sum of all workers to return; use update, or bsp")
        if not self.synchronous and self.needs_global_norm:
            raise ValueError(
                f"consistency: {self.consistency} updates each chunk as it comes and never sees a whole gradient; "
                "use bsp with clip_norm or precision: fp16"
            )

    def _saves_bytes_where_it_can(self) -> None:
        asked = [name for name in ("compression", "sync_every") if getattr(self, name) not in ("none", 1)]
        if asked and (self.strategy != "parameter_server" or not self.synchronous):
            raise ValueError(f"{asked[0]}: needs a parameter_server and consistency: bsp; or leave it out")
        if self.compression != "none" and self.precision == "fp16":
            raise ValueError("compression: fp16's loss scale would change what is still owed; use fp32 or bf16")
        if self.compression in ("int8", "onebit") and self.wire_dtype != "fp32":
            raise ValueError(f"compression: {self.compression} is a number format itself; leave wire_dtype out")
        if self.compression != "topk" and self.topk_ratio != 0.01:
            raise ValueError("topk_ratio: belongs to compression: topk; leave it out")
        if self.sync_every > 1 and self.server_role == "sum":
            raise ValueError("sync_every: the servers update with what workers have moved; leave server_role out")
        if self.sync_every == 1 and (self.outer_learning_rate, self.outer_momentum) != (0.7, 0.9):
            raise ValueError("outer_learning_rate and outer_momentum belong to sync_every above 1; leave them out")
        if self.steps % self.sync_every or self.warmup_steps % self.sync_every:
            raise ValueError(
                f"sync_every: steps: {self.steps} and warmup_steps: {self.warmup_steps} must both be multiples "
                f"of {self.sync_every}, so that every run ends where all workers hold the same model"
            )

    def _has_its_servers(self) -> None:
        served = self.strategy == "parameter_server"
        if served and self.num_servers == 0 and self.placement != "colocated":
            raise ValueError("num_servers: parameter_server needs at least 1 server; give num_servers: 1")
        if not served and self.num_servers:
            raise ValueError(f"num_servers: {self.strategy} has no servers; leave num_servers out")
        if served and self.num_servers and self.placement == "colocated":
            raise ValueError(
                "placement: colocated servers are on the workers' ranks; leave num_servers out, or use mixed"
            )
        if served and self.num_servers > self.num_workers and self.placement == "mixed":
            raise ValueError(
                f"num_servers: mixed has a use for at most as many servers as workers ({self.num_workers}), "
                f"not {self.num_servers}; use placement: dedicated"
            )

    @property
    def gpt(self) -> GPTShape:
        """The preset's dimensions with this run's overrides."""
        given = {name: getattr(self, name) for name in GPTShape.model_fields}
        return PRESETS[self.model].model_copy(update={k: v for k, v in given.items() if v is not None})

    def role(self, rank: int) -> str:
        """What a rank of this run does: the last ones serve."""
        return "worker" if rank < self.num_workers else "server"

    @property
    def world_size(self) -> int:
        """Ranks in all: workers and dedicated servers."""
        return self.num_workers + self.num_servers

    @property
    def global_batch_size(self) -> int:
        """Sequences that one update learns from."""
        return self.num_workers * self.batch_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one update learns from."""
        return self.global_batch_size * self.gpt.block_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run, warm-up included."""
        return self.warmup_steps + self.steps

    @property
    def wire_bytes(self) -> int:
        """Bytes of one copy of all gradients (or parameters) on the wire: M in the cost models."""
        itemsize = DTYPE_BYTES[self.wire_dtype]
        per_number = {"none": itemsize, "topk": self.topk_ratio * (4 + itemsize), "int8": 1, "onebit": 1 / 8}
        scales = 4 / NUMBERS_PER_SCALE if self.compression in ("int8", "onebit") else 0
        return round(self.gpt.num_parameters * (per_number[self.compression] + scales))

    @property
    def speeds(self) -> list[float]:
        """Each worker's speed relative to what the times of the layers are."""
        return parse_speeds(self.speed_factor, self.num_workers)

    @property
    def synchronous(self) -> bool:
        """Whether every update holds every worker's gradient of the same step."""
        return self.consistency == "bsp" or (self.consistency == "ssp" and self.staleness == 0)

    @property
    def needs_global_norm(self) -> bool:
        """Whether servers may apply no part of an update before the norm of the whole gradient is known."""
        gradients_travel = self.server_role == "update" and self.sync_every == 1
        return gradients_travel and (self.clip_norm is not None or self.precision == "fp16")

    @property
    def exact(self) -> bool:
        """Whether it promises the model that one process would train, but for rounding."""
        return self.synchronous and self.compression == "none" and self.sync_every == 1

    def digest(self) -> str:
        """Twelve hex digits that name this config, whatever its place in a sweep."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def unsupported(self) -> str | None:
        """Why no library can run this valid config, or None."""
        if self.strategy == "ring_allreduce" and self.wire_dtype == "bf16":
            return "Horovod 0.28 has no bf16 reduction in its PyTorch binding; use wire_dtype fp32 or fp16"
        return None


def parse_speeds(text: str | None, num_workers: int) -> list[float]:
    """'3=0.5' or '0=2,*=0.8' -> the speed of each worker; ValueError names what is wrong."""
    speeds = dict.fromkeys((str(worker) for worker in range(num_workers)), 1.0)
    given = {}
    for part in text.split(",") if text else []:
        worker, _, factor = (word.strip() for word in part.partition("="))
        if worker not in (*speeds, "*"):
            raise ValueError(
                f"speed_factor: there is no worker {worker!r} of {num_workers}; write 0=0.5, or *=0.5 for all"
            )
        try:
            given[worker] = float(factor)
        except ValueError:
            given[worker] = math.nan
        if not 0 < given[worker] < math.inf:
            raise ValueError(
                f"speed_factor: {part.strip()!r} is no speed above 0; write {worker}=0.5 for half the speed"
            )
    return [given.get(worker, given.get("*", speed)) for worker, speed in speeds.items()]


def make_config(values: Mapping[str, object], where: str) -> RunConfig:
    """Build a RunConfig from strings or values; BadInput in one line that begins with `where`."""
    if values.get("tuned"):
        values = {**_tuned_knobs(values, where), **values}
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise BadInput(f"{where}: {first_problem(error, RunConfig.model_fields)}") from None


def _tuned_knobs(values: Mapping[str, object], where: str) -> Mapping[str, object]:
    """The knobs that a file of `psring tune` has for a strategy; strategies that send nothing need none."""
    path, strategy = str(values["tuned"]), str(values.get("strategy", ""))
    found = read_tuned(path)
    if strategy in COMMUNICATING and strategy not in found:
        raise BadInput(f"{where}: {path} has no {strategy}; psring tune --strategy {strategy} --out {path}")
    knobs: Mapping[str, object] = found[strategy]["knobs"] if strategy in found else {}
    return knobs


def read_tuned(path: str) -> dict[str, dict[str, Any]]:
    """Read a file of `psring tune`: an entry per strategy, its `knobs` among what they come from."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise BadInput(f"tuned: there is no file {path}; psring tune --out {path} makes it") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"tuned: {path} cannot be read: {' '.join(str(error).split())}") from None
    entries = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(entry, dict) and isinstance(entry.get("knobs"), dict) for entry in entries):
        raise BadInput(f"tuned: {path} is no file of psring tune; make one: psring tune --out {path}.new")
    return dict(content)


def first_problem(error: ValidationError, known: Iterable[str]) -> str:
    """The first of pydantic's complaints as one line that names the field and the value."""
    problem = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {path!r}{nearest(path, known)}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{path}: {message}, not {problem['input']!r}"


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean …?' for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
