"""How many bytes and messages a strategy moves in one step, in closed form. No torch.

M is the bytes of one copy of all gradients or parameters on the wire; N allreduce ranks; W workers; S servers.
Push and pull: a worker sends M and receives M, a dedicated server receives and sends W·M/S; with a shard on every
worker's rank, each rank sends and receives 2(W−1)/W·M; workers that exchange every H-th step move 1/H of it per step.
Ring: the mean rank sends and receives exactly 2(N−1)/N·M, because in 2(N−1) hops every block leaves every rank but one
twice (Patarasuk and Yuan, 2009). Nothing is padded: blocks of one bucket differ by an element.
Sharded optimizer (zero): the same, N−1 hops with gradients and N−1 with weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from strategies.options import NUMBER_FORMATS, NUMBERS_PER_SCALE, Options
from strategies.sharding import place_tensors, server_parts
from strategies.volume import Volume, mean_volume

NORM_BYTES = 8  # one float64: the global gradient norm, or a server's share of its square


@dataclass(frozen=True)
class Job:
    """What a closed form depends on beside the knobs."""

    num_workers: int
    tensors: tuple[int, ...]  # elements of each trained tensor, in the order of definition
    # Of strategies that divide weights.
    rows: tuple[int, ...] = ()  # first dimension of each
    in_block: tuple[bool, ...] = ()  # whether each belongs to a block of the model
    # Of strategies that split the model.
    num_tokens: int = 0  # of one copy of the model in one step
    width: int = 0  # numbers per token that pass from block to block
    num_blocks: int = 0
    num_divided: int = 0  # parameters of the linear layers that tensor parallelism divides
    num_embedded: int = 0  # parameters of the token embedding, which are the output head's, too

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(self.tensors)

    @property
    def num_tensors(self) -> int:
        """Number of tensors."""
        return len(self.tensors)


@dataclass(frozen=True)
class Prediction:
    """Volume of the mean worker and the mean dedicated server in one step.

    `tolerance_bytes`: how far a correct count may be off, because messages are cut between elements. `per_rank`: each
    rank's own volume, where ranks of one role differ or may. `num_buckets`: equal parts of the payload, each of which
    is sent when all its gradients are ready and read when all of it is here; 0: not known, or as small as can be.
    """

    worker: Volume
    server: Volume | None = None
    tolerance_bytes: float = 0.0
    per_rank: tuple[Volume, ...] = ()
    num_buckets: int = 0


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
    return Prediction(_ring(options, job, _bucket_bytes(options, job)))


def _bucket_bytes(options: Options, job: Job) -> int:
    itemsize = NUMBER_FORMATS[options.wire_dtype].nbytes
    return job.num_workers * max(1, options.segment_bytes // itemsize) * itemsize


def zero_ring(options: Options, job: Job) -> Prediction:
    """Return the volume of that ring, whose second half carries weights; exact.

    Where updates need the norm of the whole gradient, each rank also sends its share of the square to all others.
    """
    volume = own_ring(options, job).worker
    if options.needs_norm:
        others = job.num_workers - 1
        volume.add(others * NORM_BYTES, others * NORM_BYTES, others, others)
    payload = payload_bytes(options, job.num_parameters)
    return Prediction(volume, num_buckets=-(-payload // _bucket_bytes(options, job)))


def horovod_ring(options: Options, job: Job) -> Prediction:
    """Return the volume of rings of full fusion buffers, the fewest possible."""
    return Prediction(_ring(options, job, options.fusion_threshold_bytes), None, _ring_tolerance(options, job))


def ddp_ring(options: Options, job: Job) -> Prediction:
    """Return the volume of rings of full buckets, the fewest possible."""
    return Prediction(_ring(options, job, options.bucket_bytes), None, _ring_tolerance(options, job))


def fsdp(options: Options, job: Job) -> Prediction:
    """Return the volume of FSDP2 on Gloo, one group per block and one for the rest; exact.

    A shard has as many rows of every tensor on every rank, so that tensors are padded to a multiple of N rows. An
    all-gather passes N-1 shards on. A reduce-scatter is an allreduce inside (Gloo's `reduce_scatter` in torch 2.13): it
    sends 2(N-1)/N of what it reduces, twice what is needed. Of a step's p passes each gathers a block for its forward
    and for its backward, the rest of the model once; without resharding after forward all is gathered once per step.
    """
    n, passes = job.num_workers, options.gradient_accumulation
    padded = [size // rows * -(-rows // n) * n for size, rows in zip(job.tensors, job.rows, strict=True)]
    blocks = sum(size for size, inside in zip(padded, job.in_block, strict=True) if inside)
    gathered = passes * (sum(padded) + blocks) if options.reshard_after_forward else sum(padded)
    itemsize = NUMBER_FORMATS[options.wire_dtype].nbytes
    moved = (n - 1) / n * (gathered * NUMBER_FORMATS["fp32"].nbytes + 2 * sum(padded) * itemsize)
    if options.clip_norm is not None or options.loss_scaling:
        moved += 2 * (n - 1) / n * NORM_BYTES
    return Prediction(Volume(moved, moved, None, None))


def _ring(options: Options, job: Job, bucket_bytes: int) -> Volume:
    n, payload = job.num_workers, payload_bytes(options, job.num_parameters)
    moved = 2 * (n - 1) / n * payload
    messages = 2 * (n - 1) * -(-payload // max(1, bucket_bytes))
    return Volume(moved, moved, messages, messages)


def _ring_tolerance(options: Options, job: Job) -> float:
    """Return the rounding of blocks: an element in each of the 2(N−1) blocks of at most one bucket per tensor."""
    return 2 * (job.num_workers - 1) * NUMBER_FORMATS[options.wire_dtype].nbytes * job.num_tensors


def pipeline(options: Options, job: Job) -> Prediction:
    """Return the volume of a pipeline of P stages, and of the allreduce between its R copies.

    Every boundary between two stages passes all tokens' activations forward and their gradients back, in fp32. The
    first and the last stage add up the gradients of the embedding that they share, and each stage's copies theirs. For
    the norm of the whole gradient stages add up one float64.
    """
    stages, itemsize = options.model_parallel_size, NUMBER_FORMATS["fp32"].nbytes
    copies = job.num_workers // stages
    shared = job.num_embedded if stages > 1 else 0
    boundaries = 2 * (stages - 1) * job.num_tokens * job.width * itemsize
    of_copies = 2 * (copies - 1) / copies * (job.num_parameters + shared) * itemsize
    of_norm = 2 * (stages - 1) * NORM_BYTES if options.clip_norm is not None or options.loss_scaling else 0
    moved = (boundaries + 2 * shared * itemsize + of_copies + of_norm) / stages
    return Prediction(Volume(moved, moved, None, None))


def tensor_parallel(options: Options, job: Job) -> Prediction:
    """Return the volume of P ranks that divide every linear layer, and of the allreduce between their R copies.

    Each block sums the activations of all tokens over the ranks four times, by rings in fp32: the outputs of attention
    and of the MLP in forward, the gradients of their inputs in backward (Shoeybi et al., Megatron-LM, 2019).

    With sequence parallelism each sum is a reduce-scatter, and what is read next an all-gather (Korthikanti et al.,
    2022): as many bytes where a reduce-scatter sends half of an allreduce; Gloo's sends as many (see `fsdp`), so that a
    block sends 3/2 of that. All tokens are gathered once more in forward, for the output head, and once in backward,
    for the embedding; the gradients of the layer norms, of which each rank has its tokens' part, are summed.
    """
    size, itemsize = options.model_parallel_size, NUMBER_FORMATS["fp32"].nbytes
    copies = job.num_workers // size
    of_ring = 2 * (size - 1) / size
    activations = job.num_tokens * job.width * itemsize
    sums: float = 4 * job.num_blocks * activations
    if options.sequence_parallel:  # in units of an allreduce, which sends twice what an all-gather does
        norms = (2 * job.num_blocks + 1) * 2 * job.width * itemsize
        sums = (4 * job.num_blocks * 3 / 2 + 1) * activations + norms
    held = job.num_parameters - job.num_divided + job.num_divided / size
    of_copies = 2 * (copies - 1) / copies * held * itemsize
    of_norm = of_ring * NORM_BYTES if options.clip_norm is not None or options.loss_scaling else 0
    moved = of_ring * sums + of_copies + of_norm
    return Prediction(Volume(moved, moved, None, None))


def pipeline_bubble(options: Options) -> float:
    """Return the share of a pipeline's time in which a stage has nothing to compute, (P-1)/(m+P-1).

    If all stages take equally long and messages no time: a stage computes m micro-batches, and waits P-1 times as long
    as one takes while the pipeline fills and drains; the same for both schedules (Huang et al., GPipe, NeurIPS 2019).
    """
    waits = options.model_parallel_size - 1
    return waits / (options.num_micro_batches + waits)


def push_pull(options: Options, job: Job) -> Prediction:
    """Add up what each rank pushes to and pulls from the servers; its own shard does not travel."""
    held = shards(options, job)
    payload, num_messages = payload_bytes(options, job.num_parameters), sum(shard.messages for shard in held.values())
    moved = []
    for rank in range(job.num_workers + options.num_servers):
        trains, shard = int(rank < job.num_workers), held.get(rank, Shard(0, 1, 0))
        others = job.num_workers - trains  # workers whose pushes travel to this rank
        # Whole numbers up to the division, so that a whole number of bytes is exact.
        nbytes = payload * (trains * (shard.of - shard.part) + others * shard.part) / shard.of
        messages = trains * (num_messages - shard.messages) + others * shard.messages
        moved.append(Volume(nbytes, nbytes, messages, messages))
    if options.needs_norm:  # every other server sends its share to the first, which sends the sum to all ranks
        first = min(held)
        for rank, volume in enumerate(moved):
            if rank != first:
                serves = int(rank in held)
                volume.add(serves * NORM_BYTES, NORM_BYTES, serves, 1)
                moved[first].add(NORM_BYTES, serves * NORM_BYTES, 1, serves)
    per_step = [volume / options.sync_every for volume in moved]
    of_worker = mean_volume(per_step[: job.num_workers])
    assert of_worker is not None
    of_server = mean_volume(per_step[job.num_workers :])
    return Prediction(of_worker, of_server, _push_pull_tolerance(options, job, held), tuple(per_step))


def _push_pull_tolerance(options: Options, job: Job, held: Mapping[int, Shard]) -> float:
    """Return how far counts may be off.

    Compressed: every message ends with less than one whole scale and byte, or one number and its index. Unequal
    ranges: a stripe is cut between elements, for each server within one of its share.
    """
    itemsize, most = NUMBER_FORMATS[options.wire_dtype].nbytes, max(shard.messages for shard in held.values())
    if options.compression != "none":
        return (len(held) + job.num_workers) * most * (4 + itemsize)
    cut = options.placement == "mixed" and options.sharding == "ranges"
    return 2 * job.num_workers * most * itemsize if cut else 0


@dataclass(frozen=True)
class Shard:
    """What one rank serves: `part` of `of` equal parts, and the messages in which a worker pushes or pulls it."""

    part: int
    of: int
    messages: int

    @property
    def share(self) -> float:
        """Its part of all parameters."""
        return self.part / self.of


def shards(options: Options, job: Job) -> dict[int, Shard]:
    """Return what each serving rank holds; messages are at most chunk_bytes and, of whole tensors, of one tensor."""
    most = max(1, options.chunk_bytes // NUMBER_FORMATS[options.wire_dtype].nbytes)
    if options.sharding == "tensors":
        return {
            rank: Shard(sum(sizes), job.num_parameters, sum(-(-size // most) for size in sizes))
            for rank, sizes in tensors_of_servers(options, job).items()
        }
    parts = server_parts(options.placement, job.num_workers, options.num_servers)
    total = sum(parts.values())
    stripes = -(-job.num_parameters * max(parts.values()) // (most * total))  # of one message per server
    return {rank: Shard(part, total, stripes) for rank, part in parts.items()}


def rank_of_tensors(options: Options, job: Job) -> list[int]:
    """Return the rank that serves each whole tensor, in the order of definition."""
    parts = server_parts(options.placement, job.num_workers, options.num_servers)
    ranks = list(parts)
    return [ranks[server] for server in place_tensors(job.tensors, list(parts.values()))]


def tensors_of_servers(options: Options, job: Job) -> dict[int, list[int]]:
    """Return the sizes of the whole tensors that each serving rank holds, elements."""
    held: dict[int, list[int]] = {
        rank: [] for rank in server_parts(options.placement, job.num_workers, options.num_servers)
    }
    for size, rank in zip(job.tensors, rank_of_tensors(options, job), strict=True):
        held[rank].append(size)
    return held
