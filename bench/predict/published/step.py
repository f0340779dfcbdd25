"""The step of a published measurement's settings, by the model of bench.predict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from bench.config import BadInput, RunConfig, make_config
from bench.durations import Durations
from bench.predict import Cell, ClusterCalibration, Workload, step_time
from bench.predict.cell import Tensor
from bench.predict.compute import expected_maximum
from bench.predict.published.models import Model
from bench.predict.published.settings import WIRE_BYTES, Settings
from strategies import catalogue
from strategies.options import MAX_MESSAGE_BYTES

# CPU per message: what a step of tens to hundreds of milliseconds hardly depends on. Adding and copying are in the rate
# of a process.
MESSAGE_CPU_S = 2e-6
MIN_CHUNK_BYTES = 1024
# Horovod's defaults of the time: 64 MiB of fusion buffer, a cycle of 5 ms. DDP's buckets of 25 MiB fit in between.
FUSION = {"fusion_threshold_bytes": 64 << 20, "cycle_time_s": 0.005}


@dataclass(frozen=True)
class Step:
    """A predicted step, seconds, in the words of its settings."""

    settings: Settings
    step_s: float
    compute_s: float  # of one worker alone
    bounded_by: str

    @property
    def samples_per_s(self) -> float:
        """Samples of all workers per second."""
        return self.settings.num_gpus * self.settings.batch_size / self.step_s

    def measure(self, name: str) -> float:
        """Return the step as what a source prints: samples_per_s, efficiency, step_s and so on."""
        per_gpu = self.samples_per_s / self.settings.num_gpus
        return {
            "samples_per_s": self.samples_per_s,
            "samples_per_s_per_gpu": per_gpu,
            "tokens_per_s_per_gpu": per_gpu * self.settings.tokens,
            "efficiency": self.compute_s / self.step_s,
            "step_s": self.step_s,
        }[name]


def step(settings: Settings, model: Model) -> Step:
    """Predict one step; BadInput if the settings do not fit together."""
    compute_s = settings.step_compute_s(model)
    if settings.kind.family == catalogue.SHARDED:
        step_s, bound = _fully_sharded(settings, model, compute_s)
    elif not settings.pushes or not settings.pipelined:
        step_s, bound = _phases(settings, model, compute_s)
    else:
        found = step_time(_cell(settings, model, compute_s), _calibration(settings))
        step_s, bound = found.step_s, found.bound
    return Step(settings, step_s, compute_s, _words(bound, settings))


def _words(bound: str, settings: Settings) -> str:
    """Return the bound, and whether the link or the process that sends is what limits it."""
    if "link" in bound and settings.process_bytes_per_s < settings.link_bytes_per_s:
        return bound.replace("link", "process")
    return bound


def _bytes_per_s(settings: Settings) -> float:
    return min(settings.link_bytes_per_s, settings.process_bytes_per_s)


def _calibration(settings: Settings) -> ClusterCalibration:
    """Return the costs. A flat ring passes the GPUs of a node one after another: the slowest hop sets its rate."""
    rate, local = _bytes_per_s(settings), settings.local_bytes_per_s
    if settings.workers_per_node > 1 and not settings.adds_in_node and settings.kind.family == catalogue.RING:
        rate = min(rate, local)
    return ClusterCalibration(
        bytes_per_s=rate, local_bytes_per_s=local, latency_s=settings.latency_s, message_cpu_s=MESSAGE_CPU_S,
        add_s_per_byte=0.0, copy_s_per_byte=0.0, compute_cv=settings.compute_cv,
        source="settings of a published measurement",
    )  # fmt: skip


def _cell(settings: Settings, model: Model, compute_s: float) -> Cell:
    shards = settings.servers if settings.placement == "colocated" and settings.kind.has_servers else None
    config = _config(settings, _chunk_bytes(settings, model))
    senders = settings.num_nodes if settings.adds_in_node else settings.num_gpus
    return Cell(
        config, ranks_per_node=settings.workers_per_node, two_level=settings.adds_in_node,
        workload=_workload(model, settings.tokens, compute_s),
        num_shards=None if shards is None else min(shards, senders),
    )  # fmt: skip


def _chunk_bytes(settings: Settings, model: Model) -> int:
    """Return what of a whole tensor is pulled before the next step's pushes of it begin.

    A server updates a tensor when the last worker has pushed it, and then sends it to one worker after another. The
    first worker computes and pushes while others still wait for their copy, so that pushes pass beside pulls: a
    W-th of the tensor's time later, as if it were cut into W chunks.
    """
    largest = model.largest * WIRE_BYTES[settings.wire_dtype]
    return min(MAX_MESSAGE_BYTES, max(MIN_CHUNK_BYTES, int(largest / settings.num_gpus)))


def _config(settings: Settings, chunk_bytes: int) -> RunConfig:
    """Return the run that exchanges the same messages. Compute is the workload's, so none here."""
    return _cached_config(
        settings.strategy, settings.num_gpus, settings.placement, settings.servers, settings.sharding,
        settings.wire_dtype, chunk_bytes,
    )  # fmt: skip


@lru_cache
def _cached_config(
    strategy: str, num_gpus: int, placement: str, servers: int, sharding: str, wire_dtype: str, chunk_bytes: int
) -> RunConfig:
    given: dict[str, object] = {
        "strategy": strategy, "num_workers": num_gpus, "compute": "none", "launcher": "mpirun",
        "wire_dtype": wire_dtype,
    }  # fmt: skip
    if catalogue.find(strategy).has_servers:
        given |= {"placement": placement, "window_bytes": None}  # psring's own; no source has one
        if placement != "colocated":
            given["num_servers"] = servers
        if sharding == "tensors":
            given["chunk_bytes"] = chunk_bytes
    else:
        given |= FUSION
    config = make_config(given, "published")
    # Without validation, which compares the number of servers with that of the tensors of the config's GPT.
    return config.model_copy(update={"sharding": sharding}) if catalogue.find(strategy).has_servers else config


@lru_cache(maxsize=1024)
def _tensors(model: Model) -> tuple[Tensor, ...]:
    found = [Tensor(f"{index}", tensor.size) for index, tensor in enumerate(model.tensors)]
    return tuple(reversed(found))


def _workload(model: Model, tokens: int, compute_s: float) -> Workload:
    """Return a model whose layers share compute in proportion to their FLOPs: a third forward, the rest backward."""
    flops = [tensor.forward_flops(tokens) for tensor in model.tensors]
    total = sum(flops) or 1.0
    shares = {str(index): each / total for index, each in enumerate(flops)}
    forward_s, backward_s = (
        {layer: share * seconds for layer, share in shares.items()} for seconds in (compute_s / 3, compute_s * 2 / 3)
    )
    return Workload(_tensors(model), Durations(forward_s, backward_s, 0.0))


def _payload(settings: Settings, model: Model) -> float:
    return float(model.size * WIRE_BYTES[settings.wire_dtype])


def _phases(settings: Settings, model: Model, compute_s: float) -> tuple[float, str]:
    """Return the step of servers where no push meets a pull: there are no pushes, or each phase waits for the other.

    Each phase takes max(M/B, W·m_s/B) of the busiest server's m_s bytes (docs/cost-models.md).
    """
    payload, rate, servers = _payload(settings, model), _bytes_per_s(settings), settings.servers
    largest = model.largest * WIRE_BYTES[settings.wire_dtype] if settings.sharding == "tensors" else 0.0
    held = max(payload / servers, largest)
    phase_s = max(payload / rate, settings.num_gpus * held / rate) + settings.latency_s
    slowed = compute_s * expected_maximum(settings.num_gpus, settings.compute_cv)
    bound = "server link" if phase_s > slowed else "compute"
    if settings.pipelined:  # weights arrive while earlier layers compute
        return max(slowed, phase_s), bound
    return slowed + (2 if settings.pushes else 1) * phase_s, bound


def _fully_sharded(settings: Settings, model: Model, compute_s: float) -> tuple[float, str]:
    """Return the step of FSDP: weights are gathered twice and gradients scattered once, beside computing.

    A node's link carries 3(N-1)/N·M for all of its GPUs' shards; a GPU's local link the same (docs/cost-models.md).
    """
    n, nodes = settings.num_gpus, settings.num_nodes
    volume = 3 * (n - 1) / n * _payload(settings, model)
    between = volume * (nodes - 1) / nodes / settings.link_bytes_per_s if nodes > 1 else 0.0
    communication_s = max(between, volume / settings.local_bytes_per_s)
    slowed = compute_s * expected_maximum(n, settings.compute_cv)
    # Gathering the first layer and scattering the last gradient have nothing to hide behind.
    exposed_s = 2 * communication_s / 3 * model.largest / model.size
    if slowed >= communication_s:
        return slowed + exposed_s, "compute"
    return communication_s + exposed_s, "worker link"


def check(settings: Settings) -> None:
    """Raise BadInput unless a run with these settings is possible."""
    if settings.kind.family != catalogue.SHARDED:
        _config(settings, MAX_MESSAGE_BYTES)
    if settings.kind.has_servers and settings.servers < 1:
        raise BadInput("num_servers: 0 servers; a parameter server has at least 1")
    if not settings.kind.has_servers and not (settings.pushes and settings.pipelined):
        raise BadInput(f"pushes and pipelined: {settings.strategy} has no servers to push to; leave them out")
