"""A scale model of a cluster: smaller payload, slower links and longer compute, in the target's proportions.

The topologies' ratio depends on M/(B·T), the time to send one payload over a link over the compute time of a step, on
the numbers of workers and servers, on the spread of the workers' times and on when in a step gradients are ready. A
scale model keeps these. It keeps neither latency and cost of a message nor a server's speed of adding and updating.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import yaml

from bench.config import BadInput, RunConfig, make_config, shorten
from bench.devices import DEVICES
from bench.durations import durations
from bench.links import parse_links, parse_rate
from bench.shape import PRESETS

EXAMPLE = "gpt2, 25gbit, a100 at 40% MFU, 8 nodes"
# Sum of the nodes' rates per core. On 2 cores a bare ring was within 2 % of its closed form at 4 Gbit/s, but servers,
# which add and update every byte, used 70 % of the cores at 1.6 Gbit/s: half of that.
BITS_PER_S_PER_CORE = 0.4e9
NODES_PER_CORE = 8
# A link's token bucket passes 128 kB at once: with 20 of them per step bursts do not distort the rate.
MIN_BYTES_PER_STEP = 20 * 128 * 1024
STEP_S = 2.0  # aim for a ring's step: up to 74 layers share it, each with 0.1 ms of overhead
MIN_COMPUTE_S = 0.02  # with less, a wake-up 0.1 ms late would matter
STEPS = {"steps": 10, "warmup_steps": 3}
REPEATS = 5

_COUNT, _NUMBER = "[0-9]{1,9}", r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_PARTS: dict[str, str] = {
    "model": "|".join(PRESETS),
    "link": rf"{_NUMBER}[kmg]bit",
    "device": rf"({'|'.join(DEVICES)}) at ({_NUMBER}) ?% mfu",
    "num_nodes": rf"({_COUNT}) nodes?",
    "num_servers": r"([1-9][0-9]{0,8}) servers?",
    "batch_size": rf"batch ({_COUNT})",
    "precision": "fp32|bf16|fp16",
    "wire_dtype": "wire (fp32|bf16|fp16)",
    "compute_cv": rf"cv ({_NUMBER})",
}


@dataclass(frozen=True)
class Target:
    """The cluster to model: the config of a ring over all its nodes, and its number of servers if given."""

    config: RunConfig
    num_servers: int | None

    @property
    def num_nodes(self) -> int:
        """Number of nodes: workers and servers."""
        return self.config.num_workers


def parse_target(text: str) -> Target:
    """'gpt2, 25gbit, a100 at 40% MFU, 8 nodes' -> its Target; BadInput for anything not understood."""
    given: dict[str, Any] = {}
    for part in text.lower().split(","):
        name, found = next(
            ((name, found) for name, form in _PARTS.items() if (found := re.fullmatch(form, part.strip()))), ("", None)
        )
        if found is None:
            raise BadInput(f"target: {shorten(part.strip())} is not understood; write, for example, {EXAMPLE!r}")
        if name in given:
            raise BadInput(f"target: {part.strip()!r} is a second {name.removeprefix('num_')}; leave one out")
        given[name] = found.groups() if name == "device" else (found.groups() or (found[0],))[0]
    for name in ("model", "link", "device", "num_nodes"):
        if name not in given:
            raise BadInput(
                f"target: no {name.removeprefix('num_')} in {shorten(text)}; write, for example, {EXAMPLE!r}"
            )
    parse_rate(given["link"])
    device, percent = given.pop("device")
    precision = "bf16" if "bf16" in DEVICES[device].peak_flops_per_s else "fp16"
    nodes, num_servers = int(given["num_nodes"]), given.pop("num_servers", None)
    if num_servers is not None and int(num_servers) >= nodes:
        raise BadInput(f"target: {num_servers} servers leave no worker of {nodes} nodes; write fewer servers")
    values = {
        "strategy": "ring_allreduce", "num_workers": given.pop("num_nodes"), "compute": "emulated",
        "device_model": device, "device_mfu": float(percent) / 100, "precision": precision, **given,
    }  # fmt: skip
    return Target(make_config(values, "target"), int(num_servers) if num_servers else None)


def communication_compute_ratio(config: RunConfig) -> float | None:
    """Return M/(B·T): seconds to send one payload over the slowest worker's link, over compute_s; None if unknown."""
    compute_s = durations(config).compute_s
    return config.wire_bytes / _bytes_per_s(config) / compute_s if config.link and compute_s else None


def _bytes_per_s(config: RunConfig) -> float:
    """Bytes per second of the slowest worker's link in each direction."""
    rates = parse_links(config.link or "", config.world_size, config.num_servers)
    return min(rates[: config.num_workers]) / 8


def scales(config: RunConfig) -> dict[str, float | None]:
    """Return the columns that relate a run to its target: M/(B·T), and the scale factors (run over target)."""
    columns: dict[str, float | None] = {"communication_compute_ratio": communication_compute_ratio(config)}
    if config.target is None:
        return columns
    target = parse_target(config.target).config
    compute_s = durations(config).compute_s
    return columns | {
        "scale_payload": config.wire_bytes / target.wire_bytes,
        "scale_link": _bytes_per_s(config) / _bytes_per_s(target) if config.link else None,
        "scale_compute": compute_s / durations(target).compute_s if compute_s else None,
    }


def scale_model(text: str, cores: int) -> str:
    """Return the sweep file of a target's scale model for a machine with `cores` cores; factors and limits as comment.

    BadInput if the target is not understood, or has too many nodes for this machine.
    """
    target = parse_target(text)
    run = _scaled(target, text, cores)
    sweep = {
        "defaults": run.model_dump(exclude_unset=True, exclude={"strategy", "num_workers", "link"}),
        "grid": _grid(target),
        "repeats": REPEATS,
        "cluster": {"num_nodes": target.num_nodes, "link": run.link},
    }
    return _heading(target, run, text) + yaml.safe_dump(sweep, sort_keys=False, default_flow_style=None, width=110)


def _scaled(target: Target, text: str, cores: int) -> RunConfig:
    """Return the config of the target's ring, scaled down to this machine."""
    nodes, max_nodes = target.num_nodes, NODES_PER_CORE * cores
    if not 2 <= nodes <= max_nodes:
        raise BadInput(f"target: {nodes} nodes; {cores} cores can emulate 2 to {max_nodes}")
    ratio = communication_compute_ratio(target.config)
    assert ratio is not None  # a target has a link and a device
    bits_per_s = _round_down(min(8 * _bytes_per_s(target.config), BITS_PER_S_PER_CORE * cores / nodes))
    bytes_per_s = bits_per_s / 8
    compute_s = max(STEP_S / (1 + 2 * ratio), MIN_COMPUTE_S, MIN_BYTES_PER_STEP / (ratio * bytes_per_s))
    shape = _shape(target.config, ratio * bytes_per_s * compute_s)
    small = target.config.model_copy(update=shape)
    payload = small.wire_bytes / target.config.wire_bytes
    compute_s = small.wire_bytes / bytes_per_s / ratio
    time = compute_s / durations(target.config).compute_s
    equal = target.config.model_dump(
        include={"strategy", "num_workers", "compute", "model", "precision", "wire_dtype", "batch_size", "compute_cv"}
    )
    values = {
        **equal, **shape, **STEPS, "target": text,
        "link": f"{bits_per_s / 1e6:g}mbit",
        "emulated_forward_s": _digits(compute_s / 3),
        "emulated_backward_s": _digits(compute_s * 2 / 3),
        "emulated_optimizer_s": _digits(durations(target.config).optimizer_s * time),
        "fusion_threshold_bytes": round(target.config.fusion_threshold_bytes * payload),
        "bucket_bytes": max(1, round(target.config.bucket_bytes * payload)),
        "cycle_time_s": _digits(target.config.cycle_time_s * time),
    }  # fmt: skip
    return make_config(values, "scale-model")


def _shape(config: RunConfig, wire_bytes: float) -> dict[str, int]:
    """Return the target's shape with all widths scaled by one factor: every tensor keeps its share of the payload."""
    factor = math.sqrt(wire_bytes / config.wire_bytes)
    widths = {
        name: max(2, round(getattr(config.gpt, name) * factor)) for name in ("n_embd", "vocab_size", "block_size")
    }
    return {"n_head": 1, **widths}


def _round_down(rate: float) -> float:
    """Round down to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rate))
    return max(step * power for step in (1, 2, 5) if step * power <= rate)


def _digits(seconds: float) -> float:
    return float(f"{seconds:.6g}")


def _grid(target: Target) -> list[dict[str, Any]]:
    """Return blocks of equal hardware: a ring, colocated servers, and dedicated servers in place of workers."""
    nodes = target.num_nodes
    servers = (
        [target.num_servers]
        if target.num_servers
        else [2**i for i in range(nodes.bit_length()) if 2 ** (i + 1) <= nodes]
    )
    dedicated = [
        {"strategy": "parameter_server", "num_workers": nodes - count, "num_servers": count} for count in servers
    ]
    colocated = {"strategy": "parameter_server", "num_workers": nodes, "placement": "colocated"}
    return [{"strategy": "ring_allreduce", "num_workers": nodes}, colocated, *dedicated]


def _heading(target: Target, run: RunConfig, text: str) -> str:
    """Return the file's opening comment: the scale factors, what is equal to the target, and what is not."""
    there, ratio = target.config, communication_compute_ratio(run)
    compute_s = [durations(config).compute_s for config in (there, run)]
    rows = [
        ("payload M, MB", there.wire_bytes / 1e6, run.wire_bytes / 1e6),
        ("link B, Mbit/s", 8 * _bytes_per_s(there) / 1e6, 8 * _bytes_per_s(run) / 1e6),
        ("compute T, ms", compute_s[0] * 1e3, compute_s[1] * 1e3),
        ("M/(B·T)", communication_compute_ratio(there) or 0.0, ratio or 0.0),
    ]
    _, by_link, by_time, _ = (two / one for _, one, two in rows)
    table = [f"{name:16}{one:12.5g}{two:12.5g}{two / one:12.4g}" for name, one, two in rows]
    lines = [
        f"Scale model of: {text} ({there.precision}, {there.batch_size} sequences per worker)",
        "",
        f"{'':16}{'target':>12}{'here':>12}{'factor':>12}",
        *table,
        "",
        "Held equal to the target: M/(B·T), workers and servers, spread of the workers' times, every layer's share of",
        "payload and compute, the number of fusion buffers and buckets, Horovod's cycle relative to a step. Nodes are",
        "equal for both topologies, so that servers take the place of workers.",
        f"Not scaled: the latency of a message ({1 / by_time:.2g} times the target's share of a step), the size and",
        f"cost of the server's messages ({by_link:.2g} times the target's over the link), and the servers' sums,",
        "which all share this machine's cores: unfair to the server. Tokens are the scaled model's: compare ratios",
        "between rows, not throughput with the target's.",
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)
