"""Communication volume of one step: the closed forms, what was counted, and whether they agree.

M is the bytes of one copy of all gradients or parameters on the wire; N allreduce ranks; W workers;
S dedicated servers. Dense push and pull: a worker sends M and receives M, a server receives and sends
W·M/S. Ring: every rank sends and receives 2(N−1)/N·M (Patarasuk and Yuan, 2009).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.config import DTYPE_BYTES, RunConfig
from bench.records import Ledger, StepRecord

NORM_BYTES = 8  # one float64: the global gradient norm, or a server's share of its square


@dataclass(frozen=True)
class Volume:
    """Bytes and messages of one rank in one step; messages are None where a library decides them."""

    bytes_sent: float | None
    bytes_received: float | None
    messages_sent: float | None
    messages_received: float | None


def predict(config: RunConfig) -> tuple[Volume, Volume | None]:
    """Return the closed form for the mean worker and, if there are any, the mean server."""
    if config.strategy == "parameter_server":
        return _push_pull(config)
    if config.strategy in ("ring_allreduce", "ddp"):
        n = config.num_workers
        volume = 2 * (n - 1) / n * config.wire_bytes
        # The fewest messages: all gradients in as few buckets as their size allows.
        largest = config.bucket_bytes if config.strategy == "ddp" else config.fusion_threshold_bytes
        messages = 2 * (n - 1) * -(-config.wire_bytes // max(1, largest))
        return Volume(volume, volume, messages, messages), None
    return Volume(0, 0, 0, 0), None


def _push_pull(config: RunConfig) -> tuple[Volume, Volume]:
    workers, servers, nbytes = config.num_workers, config.num_servers, config.wire_bytes
    chunks = _count_chunks(config)
    norm = int(config.needs_global_norm)
    # The norm: every other server sends its share to the first, which answers all servers and workers.
    shares = norm * (servers - 1)
    answers = norm * (servers - 1 + workers)
    worker = Volume(nbytes, nbytes + norm * NORM_BYTES, chunks, chunks + norm)
    server = Volume(
        bytes_sent=(workers * nbytes + (shares + answers) * NORM_BYTES) / servers,
        bytes_received=(workers * nbytes + 2 * shares * NORM_BYTES) / servers,
        messages_sent=(workers * chunks + shares + answers) / servers,
        messages_received=(workers * chunks + 2 * shares) / servers,
    )
    return worker, server


def _count_chunks(config: RunConfig) -> int:
    """Messages of one push: each server's shard in pieces of at most chunk_bytes."""
    total, servers = config.gpt.num_parameters, config.num_servers
    most = max(1, config.chunk_bytes // DTYPE_BYTES[config.wire_dtype])
    shards = [total * (s + 1) // servers - total * s // servers for s in range(servers)]
    return sum(-(-shard // most) for shard in shards)


def make_ledger(
    config: RunConfig, steps: Sequence[StepRecord], servers: Sequence[Volume], wire: Mapping[str, float | None]
) -> Ledger:
    """Put the prediction beside the mean of what measured steps and servers counted, and what the kernel did."""
    worker, server = predict(config)
    measured = [step for step in steps if not step.warmup]
    values: dict[str, float | None] = dict(wire)
    for name in ("bytes_sent", "bytes_received", "messages_sent", "messages_received"):
        values[f"{name}_per_worker_per_step"] = _mean([getattr(step, name) for step in measured])
        values[f"{name}_per_worker_per_step_predicted"] = getattr(worker, name)
        if server is not None:
            values[f"{name}_per_server_per_step"] = _mean([getattr(volume, name) for volume in servers])
            values[f"{name}_per_server_per_step_predicted"] = getattr(server, name)
    ledger = Ledger.model_validate(values)
    return ledger.model_copy(update={"ledger_agrees": agrees(config, ledger)})


def wire_ratios(ledger: Ledger) -> dict[str, float]:
    """Return wire over counted bytes, by direction and role, where both are known and something was sent."""
    values = ledger.model_dump()
    names = [f"{way}_per_{role}_per_step" for role in ("worker", "server") for way in ("bytes_sent", "bytes_received")]
    return {name: values[f"{name}_wire"] / values[name] for name in names if values[name] and values[f"{name}_wire"]}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def padding_bytes(config: RunConfig) -> int:
    """How far a ring's count may lie from the closed form, bytes.

    Each of a bucket's N blocks is a whole number of elements, so a rank's 2(N−1) blocks differ from
    2(N−1)/N of the bucket by less than one element each. Buckets: at most one per parameter tensor.
    """
    if config.strategy not in ("ring_allreduce", "ddp"):
        return 0
    tensors = 4 + 12 * config.gpt.n_layer
    return 2 * (config.num_workers - 1) * DTYPE_BYTES[config.wire_dtype] * tensors


def agrees(config: RunConfig, ledger: Ledger) -> bool | None:
    """Whether counted equals predicted: exactly for push and pull, within padding for a ring; None: not counted."""
    values = ledger.model_dump()
    compared = None
    for name, counted in values.items():
        predicted = values.get(f"{name}_predicted")
        if counted is None or predicted is None:
            continue
        rounding = 1e-12 * predicted  # of the means, which are floats
        if abs(counted - predicted) > padding_bytes(config) + rounding:
            return False
        compared = True
    return compared
