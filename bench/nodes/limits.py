"""The shortest step that the links and the computing of a cell allow, and what bounds it.

A step computes for `compute_s`. Every byte of a layer's gradient crosses the busiest link after that layer's backward,
and what comes back crosses it before the next step's forward needs it: all of it before forward begins (allreduce), or
before that layer's forward (synchronous parameter servers, zero). With layers in the order of forward, gradient k ready
at r_k, weights needed at f_k, and c_k the share of the payload in layers up to k, a step takes at least

    max(compute_s, r_k − f_k + c_k · link_s) for every k,

because backward goes from the last layer to the first: layers up to k are ready last and needed first. Where whole
buckets travel (zero), what shares a bucket with layer k is sent after r_k and needed at f_k, too: c_k then ends with
that bucket. `link_s` is the closed form's volume over the link's goodput. Latency, CPU time of messages, sums and
updates are not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench import ledger
from bench.config import RunConfig
from bench.durations import Durations, durations
from bench.links import parse_links
from bench.nodes.layout import BURST_BYTES, PAYLOAD_SHARE
from strategies.closed_forms import Job, rank_of_tensors
from strategies.volume import Volume

Numbers = npt.NDArray[np.float64]
ROUNDING = 1e-9  # of a layer's end that is a bucket's, too
COMPUTE, NETWORK, SERVER_LINK = "compute", "network", "server link"


@dataclass(frozen=True)
class Limits:
    """Seconds per step of each resource if nothing else took time, and of the shortest step."""

    compute_s: float
    worker_link_s: float  # the busier direction of the slowest worker's link
    server_link_s: float  # the same of a dedicated server; NaN without one
    min_step_s: float

    @property
    def bounded_by(self) -> str:
        """The resource that takes longest."""
        links = {NETWORK: self.worker_link_s, SERVER_LINK: np.nan_to_num(self.server_link_s)}
        return max({COMPUTE: self.compute_s, **links}.items(), key=lambda item: item[1])[0]


def is_known(config: RunConfig, allreduce_algorithm: str | None) -> bool:
    """Whether the links and the volume of a config are known; a lone process needs none.

    The limits are those of workers that each hold the whole model.
    """
    if config.kind.splits:
        return False
    alone = config.world_size == 1 or not config.kind.communicates
    closed_form = config.kind.closed_form is not None and allreduce_algorithm != "not_ring"
    return closed_form and (alone or config.link is not None)


def shortest_step_s(config: RunConfig, allreduce_algorithm: str | None) -> float | None:
    """Return the seconds that the mean step of a run cannot be shorter than; None unless compute and links are known.

    A link that was idle passes the bytes of its token bucket at once: by that a step may be shorter than `min_step_s`.
    """
    if config.compute == "real" or config.compute_cv or not is_known(config, allreduce_algorithm):
        return None
    found = limits(config, durations(config))
    rates = parse_links(config.link, config.world_size, config.num_servers) if config.link else ()
    burst_s = BURST_BYTES * 8 / min(rates) if rates else 0.0
    links_s = max(found.worker_link_s, float(np.nan_to_num(found.server_link_s)))
    return max(found.compute_s, links_s, found.min_step_s - burst_s)


def limits(config: RunConfig, found: Durations, link_factor: float = 1.0) -> Limits:
    """Return the limits of a config whose layers take these durations."""
    slowest = 1 / min(config.speeds)
    link_s = _link_s(config, link_factor)
    servers = link_s[config.num_workers :]
    compute_s = found.compute_s * slowest
    if not config.kind.streams_weights:
        compute_s += found.optimizer_s
    in_step = _in_one_step(config, found, link_s, slowest) if link_s.any() else 0.0
    worker_s, server_s = float(link_s[: config.num_workers].max()), float(servers.max()) if len(servers) else np.nan
    return Limits(compute_s, worker_s, server_s, max(compute_s, float(link_s.max()), in_step))


def _link_s(config: RunConfig, link_factor: float) -> Numbers:
    """Return the seconds that each rank's link carries data in one step, in its busier direction."""
    if config.link is None:
        return np.zeros(config.world_size)
    predicted = ledger.predict(config)
    mean = [predicted.worker] * config.num_workers
    mean += [predicted.server] * config.num_servers if predicted.server else []
    moved = np.array([_bytes(volume) for volume in predicted.per_rank or mean])
    rates = np.array(parse_links(config.link, config.world_size, config.num_servers))
    return np.asarray(moved / (link_factor * rates / 8 * PAYLOAD_SHARE))


def _bytes(volume: Volume) -> float:
    """Return the bytes of the busier direction."""
    return max(volume.bytes_sent or 0.0, volume.bytes_received or 0.0)


def _in_one_step(config: RunConfig, found: Durations, link_s: Numbers, slowest: float) -> float:
    """Return the bound of a synchronous step, in which gradients wait for backward and forward for the answer.

    0 where a step does not wait for its own exchange (asp, ssp and steps between two exchanges), and where
    passes gather weights, which travel in forward, too.
    """
    if config.consistency != "bsp" or config.sync_every > 1 or config.kind.gathers_weights:
        return 0.0
    layers = list(config.gpt.layer_tensors)
    forward = np.array([found.forward_s[layer] for layer in layers]) * slowest
    backward = np.array([found.backward_s[layer] for layer in layers]) * slowest
    ready = forward.sum() + backward[::-1].cumsum()[::-1]
    needed = forward.cumsum() - forward if config.kind.streams_weights else np.zeros(len(forward))
    ends = max(float((ready - needed + shares * busy_s).max()) for busy_s, shares in _busiest(config, link_s))
    return ends + (0.0 if config.kind.streams_weights else found.optimizer_s)


def _busiest(config: RunConfig, link_s: Numbers) -> Iterator[tuple[float, Numbers]]:
    """Yield the seconds that a link is busy, and the share of these that layers up to k take, for each that may bound.

    Where every link carries every layer alike, that is the busiest one; else each link has its own shares.
    """
    if config.sharding == "ranges":
        sizes = [sum(tensors) for tensors in config.gpt.layer_tensors.values()]
        shares, num_buckets = np.array(sizes).cumsum() / sum(sizes), ledger.predict(config).num_buckets
        if num_buckets:
            shares = np.ceil(shares * num_buckets - ROUNDING) / num_buckets
        yield float(link_s.max()), shares
        return
    job = Job(config.num_workers, config.gpt.tensors)
    rank_of = rank_of_tensors(config, job)
    layer_of = [number for number, tensors in enumerate(config.gpt.layer_tensors.values()) for _ in tensors]
    for rank, busy_s in enumerate(link_s):
        trains = rank < config.num_workers
        moved = np.zeros(len(config.gpt.layer_tensors))
        for layer, size, server in zip(layer_of, job.tensors, rank_of, strict=True):
            moved[layer] += size * (config.num_workers - trains if server == rank else trains)
        if moved.any():
            yield float(busy_s), moved.cumsum() / moved.sum()
