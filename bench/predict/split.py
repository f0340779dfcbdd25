"""Steps of a model whose layers (pipeline) or whose layers' columns (tensor_parallel) are split among ranks.

Pipeline of P stages and m micro-batches: a stage waits for the activations of the one before it, and for the gradients
of the one after it. With equal stages and free messages a step takes (m+P-1)/m of a stage's compute, a bubble of
(P-1)/(m+P-1) (Huang et al., GPipe, NeurIPS 2019). Tensor parallelism sums activations over ranks four times per block,
and waits for each sum (Shoeybi et al., Megatron-LM, 2019). Copies of the model add up their gradients after the last
backward, in buckets.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.predict.allreduce import slowest_link
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.compute import Compute
from bench.predict.sharded import Collectives, in_buckets
from strategies.closed_forms import NORM_BYTES

ITEM_BYTES = 4  # both pass fp32
BUCKET_BYTES = 25 << 20  # of an allreduce between copies (strategies.split)
Op = tuple[str, int]  # "F" or "B", and the micro-batch
DIVIDED = ("attention.qkv", "attention.proj", "fc", "proj")  # layers that tensor parallelism splits


@dataclass(frozen=True)
class Stage:
    """What one of P ranks holds and does in a step of its copy."""

    forward_s: float  # of all micro-batches
    backward_s: float
    parameters: int
    sent_bytes: float


def stages(cell: Cell, own: Compute) -> list[Stage]:
    """Return the stages: equally many blocks each; the embeddings are in the first, the output head is in the last."""
    config, shape = cell.config, cell.shape
    count, copies = config.model_parallel_size, config.num_replicas
    per_stage = shape.n_layer // count
    found = [[0.0, 0.0, 0.0] for _ in range(count)]
    for (layer, sizes), forward, backward in zip(
        shape.layer_tensors.items(), own.forward.tolist(), own.backward.tolist(), strict=True
    ):
        place = (
            int(layer.split(".")[1]) // per_stage if layer.startswith("blocks.") else (count - 1) * (layer == "ln_f")
        )
        for i, value in enumerate((forward, backward, sum(sizes))):
            found[place][i] += value
    shared = shape.vocab_size * shape.n_embd if count > 1 else 0  # the embedding, which is the head's weight too
    found[-1][2] += shared
    activations = _activation_bytes(cell)
    of_norm = 2 * (count - 1) / count * NORM_BYTES if config.clip_norm is not None or config.loss_scaling else 0.0
    made = []
    for place, (forward, backward, parameters) in enumerate(found):
        boundaries = (place < count - 1) + (place > 0)
        at_end = place in (0, count - 1)
        of_copies = 2 * (copies - 1) / copies * parameters * ITEM_BYTES
        sent = boundaries * activations + at_end * shared * ITEM_BYTES + of_copies + of_norm
        made.append(Stage(forward, backward, int(parameters), sent))
    return made


def _activation_bytes(cell: Cell) -> float:
    """Return the bytes of one step's activations between two blocks of a copy of the model."""
    return float(cell.config.batch_size * cell.shape.block_size * cell.shape.n_embd * ITEM_BYTES)


def order(schedule: str, stage: int, count: int, micro_batches: int) -> list[Op]:
    """Return what a stage does in turn: all forwards first (gpipe), or a backward as soon as there is one (1f1b)."""
    ahead = micro_batches if schedule == "gpipe" else min(micro_batches, count - stage)
    found: list[Op] = [("F", i) for i in range(ahead)]
    for i in range(micro_batches):
        found.append(("B", i))
        if ahead + i < micro_batches:
            found.append(("F", ahead + i))
    return found


def pipeline(cell: Cell, calibration: ClusterCalibration, own: Compute) -> Collectives:
    """Return the time line of the stage that ends last, with the sums over both ends and between copies."""
    config, held = cell.config, stages(cell, own)
    count, copies = config.model_parallel_size, config.num_replicas
    line = Collectives.of(cell, calibration)
    sending_s = 0.0
    if count > 1:
        nbytes = _activation_bytes(cell) / _micro_batches(cell)
        sending_s = nbytes * calibration.duplex_factor / slowest_link(cell, calibration)
    line.now = schedule_end(cell, held, sending_s, calibration.latency_s + 2 * calibration.message_cpu_s)
    shared = cell.shape.vocab_size * cell.shape.n_embd * ITEM_BYTES
    if count > 1:
        line.allreduce(2, shared)
    for nbytes in in_buckets(max(stage.parameters for stage in held) * ITEM_BYTES, BUCKET_BYTES):
        line.allreduce(copies, nbytes)
    if config.clip_norm is not None or config.loss_scaling:
        line.allreduce(count, NORM_BYTES)
    line.sent_bytes = max(stage.sent_bytes for stage in held)
    return line


def _micro_batches(cell: Cell) -> int:
    return cell.config.num_micro_batches * cell.config.gradient_accumulation


def schedule_end(cell: Cell, held: list[Stage], sending_s: float, latency_s: float) -> float:
    """Return when the last stage has done its last micro-batch.

    A message begins when its receiver waits for it: Gloo sends only what the receiver has asked for, and torch's
    schedules ask just before they need it.
    """
    count, m = len(held), _micro_batches(cell)
    seconds = {"F": [stage.forward_s / m for stage in held], "B": [stage.backward_s / m for stage in held]}
    orders = [order(cell.config.pipeline_schedule, s, count, m) for s in range(count)]
    free, busy = [0.0] * count, {"F": [0.0] * count, "B": [0.0] * count}  # busy: the link by which a stage receives
    sent = {("F", 0, i): 0.0 for i in range(m)}  # when the stage before has made it
    left = [0] * count
    while any(done < 2 * m for done in left):
        for s in range(count):
            while left[s] < 2 * m and (orders[s][left[s]][0], s, orders[s][left[s]][1]) in sent:
                kind, i = orders[s][left[s]]
                begin = free[s]
                if (kind == "F" and s) or (kind == "B" and s < count - 1):
                    busy[kind][s] = max(busy[kind][s], free[s], sent[kind, s, i]) + sending_s
                    begin = busy[kind][s] + latency_s
                end = free[s] = begin + seconds[kind][s]
                left[s] += 1
                following = (
                    ("B", s, i) if kind == "F" and s == count - 1 else (kind, s + 1 if kind == "F" else s - 1, i)
                )
                sent[following] = end
    return max(free)


def tensor_parallel(cell: Cell, calibration: ClusterCalibration, own: Compute) -> Collectives:
    """Return the time line of a rank: its part of every block, and a sum after each half of it, both ways."""
    config, shape = cell.config, cell.shape
    size, copies, passes = config.model_parallel_size, config.num_replicas, config.gradient_accumulation
    line = Collectives.of(cell, calibration)
    line.compute(_part_s(cell, own))
    for _ in range(4 * shape.n_layer * passes):
        line.allreduce(size, _activation_bytes(cell) / passes)
    for nbytes in in_buckets(held_numbers(cell) * ITEM_BYTES, BUCKET_BYTES):
        line.allreduce(copies, nbytes)
    if config.clip_norm is not None or config.loss_scaling:
        line.allreduce(size, NORM_BYTES)
    return line


def _part_s(cell: Cell, own: Compute) -> float:
    """Return the compute of a rank that does its part of divided layers, and all of the others."""
    size = cell.config.model_parallel_size
    seconds: list[float] = (own.forward + own.backward).tolist()
    layers = zip(cell.shape.layer_tensors, seconds, strict=True)
    return sum(each / (size if layer.endswith(DIVIDED) else 1) for layer, each in layers)


def held_numbers(cell: Cell) -> float:
    """Return the parameters that a rank of tensor parallelism holds."""
    divided = cell.job.num_divided
    return cell.num_parameters - divided + divided / cell.config.model_parallel_size
