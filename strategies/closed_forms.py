"""How many bytes and messages a strategy moves in one step, in closed form. No torch.

M is the bytes of one copy of all gradients or parameters on the wire; N allreduce ranks; W workers; S servers.
Push and pull: a worker sends M and receives M, a dedicated server receives and sends W·M/S; with a shard on every
worker's rank, each rank sends and receives 2(W−1)/W·M; workers that exchange every H-th step move 1/H of it per step.
Ring: the mean rank sends and receives exactly 2(N−1)/N·M, because in 2(N−1) hops every block leaves every rank but one
twice (Patarasuk and Yuan, 2009). Nothing is padded: blocks of one bucket differ by an element.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from strategies.options import NUMBER_FORMATS, NUMBERS_PER_SCALE, Options
from strategies.volume import Volume, mean_volume

NORM_BYTES = 8  # one float64: the global gradient norm, or a server's share of its square


@dataclass(frozen=True)
class Job:
    """What a closed form depends on beside the knobs."""

    num_workers: int
    num_parameters: int
    num_tensors: int


@dataclass(frozen=True)
class Prediction:
    """Volume of the mean worker and the mean dedicated server in one step.

    `tolerance_bytes`: how far a correct count may be off, because messages are cut between elements.
    """

    worker: Volume
    server: Volume | None = None
    tolerance_bytes: float = 0.0


ClosedForm = Callable[[Options, Job], Prediction]


def payload_bytes(options: Options, num_parameters: int) -> int:
    """Return M: bytes of one copy of all gradients (or parameters) on the wire, compressed."""
    itemsize = NUMBER_FORMATS[options.wire_dtype].nbytes
    per_number = {"none": itemsize, "topk": options.topk_ratio * (4 + itemsize), "int8": 1, "onebit": 1 / 8}
    scales = 4 / NUMBERS_PER_SCALE if options.compression in ("int8", "onebit") else 0
    return round(num_parameters * (per_number[options.compression] + scales))


def nothing(options: Options, job: Job) -> Prediction:
    """No communication."""
    return Prediction(Volume())


def own_ring(options: Options, job: Job) -> Prediction:
    """Return the volume of a ring whose buckets have one message of segment_bytes per worker; exact."""
    itemsize = NUMBER_FORMATS[options.wire_dtype].nbytes
    bucket = job.num_workers * max(1, options.segment_bytes // itemsize) * itemsize
    return Prediction(_ring(options, job, bucket))


def horovod_ring(options: Options, job: Job) -> Prediction:
    """Return the volume of rings of full fusion buffers, the fewest possible."""
    return Prediction(_ring(options, job, options.fusion_threshold_bytes), None, _ring_tolerance(options, job))


def ddp_ring(options: Options, job: Job) -> Prediction:
    """Return the volume of rings of full buckets, the fewest possible."""
    return Prediction(_ring(options, job, options.bucket_bytes), None, _ring_tolerance(options, job))


def _ring(options: Options, job: Job, bucket_bytes: int) -> Volume:
    n, payload = job.num_workers, payload_bytes(options, job.num_parameters)
    moved = 2 * (n - 1) / n * payload
    messages = 2 * (n - 1) * -(-payload // max(1, bucket_bytes))
    return Volume(moved, moved, messages, messages)


def _ring_tolerance(options: Options, job: Job) -> float:
    """Return the rounding of blocks: an element in each of the 2(N−1) blocks of at most one bucket per tensor."""
    return 2 * (job.num_workers - 1) * NUMBER_FORMATS[options.wire_dtype].nbytes * job.num_tensors


def push_pull(options: Options, job: Job) -> Prediction:
    """Add up what each rank pushes to and pulls from servers, its own share left out, and what it serves to others."""
    shares = server_shares(options, job.num_workers)
    payload, stripes = payload_bytes(options, job.num_parameters), _count_stripes(options, job, max(shares.values()))
    norm, first = options.needs_norm, min(shares)

    def of_rank(rank: int) -> Volume:
        trains, own, serves = rank < job.num_workers, shares.get(rank, 0.0), rank in shares
        pairs = trains * (len(shares) - serves) + serves * (job.num_workers - trains)
        moved = (trains * (1 - own) + (job.num_workers - trains) * own) * payload
        # Every other server sends its share of the norm to the first, which sends the sum to all ranks.
        sends = norm * (job.num_workers + options.num_servers - 1 if rank == first else serves)
        receives = norm * (len(shares) - 1 if rank == first else 1)
        messages = pairs * stripes
        return Volume(
            moved + sends * NORM_BYTES, moved + receives * NORM_BYTES, messages + sends, messages + receives
        )  # fmt: skip

    per_step = [of_rank(rank) / options.sync_every for rank in range(job.num_workers + options.num_servers)]
    of_worker = mean_volume(per_step[: job.num_workers])
    assert of_worker is not None
    return Prediction(of_worker, mean_volume(per_step[job.num_workers :]), _push_pull_tolerance(options, job, shares))


def _push_pull_tolerance(options: Options, job: Job, shares: dict[int, float]) -> float:
    """Return how far counts may be off.

    Compressed: every message ends with less than one whole scale and byte, or one number and its index. Unequal
    servers: a stripe is cut between elements, for each server within one of its share.
    """
    itemsize, stripes = NUMBER_FORMATS[options.wire_dtype].nbytes, _count_stripes(options, job, max(shares.values()))
    if options.compression != "none":
        return (len(shares) + job.num_workers) * stripes * (4 + itemsize)
    return 2 * job.num_workers * stripes * itemsize if options.placement == "mixed" else 0


def server_shares(options: Options, num_workers: int) -> dict[int, float]:
    """Return what part of the parameters each serving rank holds.

    Mixed, n workers and k servers of their own: a worker's rank (n-k)/D, a server's 2(n-1)/D, where D = n^2+kn-2k
    (Jiang et al., OSDI 2020).
    """
    n, k = num_workers, options.num_servers
    if options.placement == "colocated":
        return dict.fromkeys(range(n), 1 / n)
    if options.placement == "dedicated" or k == n:
        return dict.fromkeys(range(n, n + k), 1 / k)
    d = n * n + k * n - 2 * k
    return {rank: ((n - k) if rank < n else 2 * (n - 1)) / d for rank in range(n + k)}


def _count_stripes(options: Options, job: Job, largest_share: float) -> int:
    """Return the messages between a worker and each server: the largest server's chunks are at most chunk_bytes."""
    most = max(1, options.chunk_bytes // NUMBER_FORMATS[options.wire_dtype].nbytes)
    return math.ceil(round(job.num_parameters * largest_share / most, 9))
