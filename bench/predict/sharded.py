"""Steps that divide the optimizer, or the weights too, among the ranks (ZeRO; Rajbhandari et al., SC 2020).

`zero` is a ring-allreduce cut in half: a bucket is reduced as backward makes it, updated on the rank that holds it, and
gathered before the next forward reads it: (N-1)/N·m each way. `fsdp` gathers each group's weights in the passes that
read them, and reduce-scatters its gradients after its backward, on Gloo by an allreduce, 2(N-1)/N·m. On Gloo every
collective blocks the pass that calls it, so that nothing overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.predict.allreduce import Link, pieces, slowest_link
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.compute import Compute
from bench.predict.push_pull import LOCAL, MAX_PIECES, UP, WORKER_CPU, Work, local_s
from strategies.closed_forms import NORM_BYTES
from strategies.options import NUMBER_FORMATS

WEIGHT_BYTES = NUMBER_FORMATS["fp32"].nbytes  # of FSDP's gathered weights


def zero_works(cell: Cell, calibration: ClusterCalibration, compute: Compute) -> list[Work]:
    """Return the buckets in the order of backward: a reduce-scatter, the update of a block, an all-gather."""
    n, config = cell.senders, cell.config
    buckets = max(1, math.ceil(cell.payload / (config.segment_bytes * n)))
    number = min(buckets, MAX_PIECES)
    ready, sizes = pieces(cell, compute, number)
    nbytes, share = sizes[0], (n - 1) / n
    crowd = calibration.crowding(config.num_workers)
    link = share * nbytes * calibration.duplex_factor / slowest_link(cell, calibration) if n > 1 else 0.0
    passing = crowd * (2 * (n - 1) * buckets / number * calibration.message_cpu_s
                       + share * nbytes * calibration.copy_s_per_byte)  # fmt: skip
    adding = crowd * share * nbytes * calibration.add_s_per_byte
    local = (LOCAL, local_s(cell, calibration, nbytes))
    reduce = [(UP, link), (WORKER_CPU, passing + adding), local]
    update = [(WORKER_CPU, compute.optimizer_s * nbytes / cell.payload / n)]
    gather = [(UP, link), (WORKER_CPU, passing), local]
    elements = cell.num_parameters / number
    return [Work(at, reduce, update, gather, i * elements, (i + 1) * elements) for i, at in enumerate(ready)]


@dataclass
class Collectives:
    """A worker's time line of collectives that block it, and what they took of each resource."""

    cell: Cell
    calibration: ClusterCalibration
    link: Link
    now: float = 0.0
    sent_bytes: float = 0.0
    waited_s: float = 0.0
    cpu_s: float = 0.0
    latency_s: float = 0.0

    @staticmethod
    def of(cell: Cell, calibration: ClusterCalibration) -> Collectives:
        """Return an empty time line."""
        burst = calibration.burst_bytes
        return Collectives(cell, calibration, Link(burst / slowest_link(cell, calibration) if burst else 0.0))

    def compute(self, seconds: float) -> None:
        """Compute for so long."""
        self.now += seconds

    def ring(self, ranks: int, nbytes: float, hops: int, adds: float = 0.0) -> None:
        """Wait for a ring of some ranks: in each hop a rank passes one of as many parts of `nbytes` on."""
        if ranks == 1:
            return
        costs, crowd = self.calibration, self.calibration.crowding(self.cell.config.num_workers)
        sent = hops / ranks * nbytes
        passing_s = sent * costs.duplex_factor / slowest_link(self.cell, costs)
        cpu_s = crowd * (2 * hops * costs.message_cpu_s + sent * costs.copy_s_per_byte + adds * costs.add_s_per_byte)
        end = self.link.send(self.now, passing_s) + hops * costs.latency_s + cpu_s
        self.waited_s += end - self.now
        self.now, self.cpu_s, self.latency_s = end, self.cpu_s + cpu_s, self.latency_s + hops * costs.latency_s
        self.sent_bytes += sent

    def all_gather(self, ranks: int, nbytes: float) -> None:
        """Wait until every rank has all parts of `nbytes`: (N-1)/N of them are sent."""
        self.ring(ranks, nbytes, ranks - 1)

    def allreduce(self, ranks: int, nbytes: float) -> None:
        """Wait for a sum over ranks: 2(N-1)/N of the bytes are sent."""
        self.ring(ranks, nbytes, 2 * (ranks - 1), adds=(ranks - 1) / ranks * nbytes)


def fsdp(cell: Cell, calibration: ClusterCalibration, own: Compute) -> Collectives:
    """Return the time line of a step's passes: one group per block, one for the rest of the model."""
    config, n = cell.config, cell.config.num_workers
    line, sizes, passes = Collectives.of(cell, calibration), _padded(cell), config.gradient_accumulation
    layers = list(dict.fromkeys(tensor.layer for tensor in reversed(cell.tensors)))
    forward, backward = _by_group(layers, own.forward.tolist()), _by_group(layers, own.backward.tolist())
    blocks = [group for group in sizes if group]
    for number in range(passes):
        if config.reshard_after_forward or number == 0:
            line.all_gather(n, sizes[""] * WEIGHT_BYTES)
        for group in blocks:
            if config.reshard_after_forward or number == 0:
                line.all_gather(n, sizes[group] * WEIGHT_BYTES)
            line.compute(forward[group] / passes)
        line.compute((forward[""] + backward[""]) / passes)
        for group in reversed(blocks):
            if config.reshard_after_forward:
                line.all_gather(n, sizes[group] * WEIGHT_BYTES)
            line.compute(backward[group] / passes)
            if number == passes - 1:
                line.allreduce(n, sizes[group] * NUMBER_FORMATS[config.wire_dtype].nbytes)
    line.allreduce(n, sizes[""] * NUMBER_FORMATS[config.wire_dtype].nbytes)
    if config.clip_norm is not None or config.loss_scaling:
        line.allreduce(n, NORM_BYTES)
    return line


def _padded(cell: Cell) -> dict[str, int]:
    """Return the elements of each group's shards together; that of the rest of the model is called ''."""
    n, shape, found = cell.config.num_workers, cell.shape, {"": 0}
    rows = iter(shape.tensor_rows)
    for layer, sizes in shape.layer_tensors.items():
        for size in sizes:
            each = next(rows)
            found[_group(layer)] = found.get(_group(layer), 0) + size // each * -(-each // n) * n
    return found


def _by_group(layers: list[str], seconds: list[float]) -> Mapping[str, float]:
    found: dict[str, float] = {"": 0.0}
    for layer, each in zip(layers, seconds, strict=True):
        found[_group(layer)] = found.get(_group(layer), 0.0) + each
    return found


def _group(layer: str) -> str:
    return ".".join(layer.split(".")[:2]) if layer.startswith("blocks.") else ""


def in_buckets(nbytes: float, limit: float) -> Iterator[float]:
    """Yield the sizes of buckets of at most `limit` bytes."""
    number = max(1, math.ceil(nbytes / limit))
    yield from [nbytes / number] * number
