"""Communication volume of one step: the closed forms, what was counted, and whether they agree.

M is the bytes of one copy of all gradients or parameters on the wire; N allreduce ranks; W workers;
S servers. Dense push and pull: a worker sends M and receives M, a dedicated server receives and sends
W·M/S; with a shard on every worker's rank, each rank sends and receives 2(W−1)/W·M; of workers that exchange every
H-th step only, the mean step an H-th of it. Ring: every rank sends and receives 2(N−1)/N·M (Patarasuk and Yuan, 2009);
exactly so the mean rank, for in 2(N−1) hops every block leaves every rank but one twice. Nothing is padded: blocks of
one bucket differ by an element.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bench.config import RunConfig
from bench.records import Ledger
from strategies.options import NUMBER_FORMATS
from strategies.volume import Volume

Moved = npt.NDArray[np.float64]  # bytes sent, received; messages sent, received

# At most, of a message: Open MPI's, TCP's, IP's, Ethernet's and the acknowledgement's (140 to 200 were seen).
HEADER_BYTES = 200
NORM_BYTES = 8  # one float64: the global gradient norm, or a server's share of its square
DIRECTIONS = [f"{way}_per_{role}_per_step" for role in ("worker", "server") for way in ("bytes_sent", "bytes_received")]


def predict(config: RunConfig) -> tuple[Volume, Volume | None]:
    """Return the closed form for the mean worker and, if there are any, the mean server."""
    if config.strategy == "parameter_server":
        return _push_pull(config)
    if config.strategy in ("ring_allreduce", "mpi_ring", "ddp"):
        n = config.num_workers
        volume = 2 * (n - 1) / n * config.wire_bytes
        messages = 2 * (n - 1) * _count_buckets(config)
        return Volume(volume, volume, messages, messages), None
    return Volume(0, 0, 0, 0), None


def _push_pull(config: RunConfig) -> tuple[Volume, Volume | None]:
    """Add up, pair by pair, what each rank pushes to and returns from each server; its own shard does not travel."""
    shares = server_shares(config)
    chunks = count_stripes(config, max(shares.values()))
    moved: dict[int, Moved] = {rank: np.zeros(4) for rank in range(config.world_size)}

    def send(source: int, target: int, nbytes: float, messages: float) -> None:
        if source != target:
            moved[source] += (nbytes, 0, messages, 0)
            moved[target] += (0, nbytes, 0, messages)

    for server, share in shares.items():
        for worker in range(config.num_workers):
            send(worker, server, share * config.wire_bytes, chunks)
            send(server, worker, share * config.wire_bytes, chunks)
    if config.needs_norm:  # every other server sends its share to the first, which tells all other ranks
        first = min(shares)
        for server in shares:
            send(server, first, NORM_BYTES, 1)
        for rank in moved:
            send(first, rank, NORM_BYTES, 1)
    per_step = [moved[rank] / config.sync_every for rank in range(config.world_size)]
    workers, servers = per_step[: config.num_workers], per_step[config.num_workers :]
    return _mean_volume(workers), _mean_volume(servers) if servers else None


def _count_buckets(config: RunConfig) -> int:
    """Rings that the gradients are cut into: for a library the fewest that its largest bucket allows."""
    itemsize = NUMBER_FORMATS[config.wire_dtype].nbytes
    largest = {
        "ring_allreduce": config.fusion_threshold_bytes,
        "mpi_ring": config.num_workers * max(1, config.segment_bytes // itemsize) * itemsize,
        "ddp": config.bucket_bytes,
    }[config.strategy]
    return -(-config.wire_bytes // max(1, largest))


def _mean_volume(of_ranks: Sequence[Moved]) -> Volume:
    sent, received, messages_sent, messages_received = np.mean(of_ranks, axis=0).tolist()
    return Volume(sent, received, messages_sent, messages_received)


def server_shares(config: RunConfig) -> dict[int, float]:
    """Return what part of the parameters each serving rank holds.

    Mixed, n workers and k servers of their own: a worker's rank (n-k)/D, a server's 2(n-1)/D, where D = n^2+kn-2k
    (Jiang et al., OSDI 2020).
    """
    n, k = config.num_workers, config.num_servers
    if config.placement == "colocated":
        return dict.fromkeys(range(n), 1 / n)
    if config.placement == "dedicated" or k == n:
        return dict.fromkeys(range(n, n + k), 1 / k)
    d = n * n + k * n - 2 * k
    return {rank: ((n - k) if rank < n else 2 * (n - 1)) / d for rank in range(n + k)}


def count_stripes(config: RunConfig, largest_share: float) -> int:
    """Messages between a worker and each server: the largest server's chunks are at most chunk_bytes."""
    most = max(1, config.chunk_bytes // NUMBER_FORMATS[config.wire_dtype].nbytes)
    return math.ceil(round(config.gpt.num_parameters * largest_share / most, 9))


def make_ledger(
    config: RunConfig, workers: Sequence[Volume], servers: Sequence[Volume], wire: Mapping[str, float | None]
) -> Ledger:
    """Put the prediction beside the mean of what workers and servers counted, and what the kernel did."""
    worker, server = predict(config)
    values: dict[str, float | None] = dict(wire)
    for name in ("bytes_sent", "bytes_received", "messages_sent", "messages_received"):
        values[f"{name}_per_worker_per_step"] = _mean([getattr(volume, name) for volume in workers])
        values[f"{name}_per_worker_per_step_predicted"] = getattr(worker, name)
        if server is not None:
            values[f"{name}_per_server_per_step"] = _mean([getattr(volume, name) for volume in servers])
            values[f"{name}_per_server_per_step_predicted"] = getattr(server, name)
    ledger = Ledger.model_validate(values)
    return ledger.model_copy(update={"ledger_agrees": agrees(config, ledger)})


def wire_ratios(ledger: Ledger) -> dict[str, float]:
    """Return wire over counted bytes, by direction and role, where both are known and something was sent."""
    values = ledger.model_dump()
    known = [name for name in DIRECTIONS if values[name] and values[f"{name}_wire"]]
    return {name: values[f"{name}_wire"] / values[name] for name in known}


def header_shares(ledger: Ledger) -> dict[str, float]:
    """Return what headers of messages may add to the wire over counted bytes, by direction and role.

    Nothing where messages are not counted. Only of small messages, which compression makes, is it much.
    """
    values = ledger.model_dump()
    messages = {name: values[name.replace("bytes", "messages")] for name in DIRECTIONS}
    return {name: HEADER_BYTES * (messages[name] or 0) / values[name] for name in DIRECTIONS if values[name]}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def padding_bytes(config: RunConfig) -> int:
    """How far a count may lie from the closed form, bytes.

    Unequal servers: a stripe is cut between elements, for each server within one of its share. A ring: each of a
    bucket's N blocks is a whole number of elements, so a rank's 2(N−1) blocks differ from 2(N−1)/N of the bucket
    by less than one element each. Buckets: at most one per parameter tensor. Compressed: every message ends
    with less than one whole scale and byte, or one number and its place.
    """
    itemsize = NUMBER_FORMATS[config.wire_dtype].nbytes
    if config.compression != "none":
        shares = server_shares(config)
        return (len(shares) + config.num_workers) * count_stripes(config, max(shares.values())) * (4 + itemsize)
    if config.strategy == "parameter_server" and config.placement == "mixed":
        return 2 * config.num_workers * count_stripes(config, max(server_shares(config).values())) * itemsize
    if config.strategy not in ("ring_allreduce", "ddp"):
        return 0  # our own ring is counted message by message, and its mean rank is exact
    tensors = 4 + 12 * config.gpt.n_layer
    return 2 * (config.num_workers - 1) * itemsize * tensors


def agrees(config: RunConfig, ledger: Ledger) -> bool | None:
    """Whether counted equals predicted: within the padding; None: not counted."""
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
