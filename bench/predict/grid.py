"""Which cells to predict: those of a folder or a sweep file, the folder's strategies on other nodes, or a target's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.config import BadInput, RunConfig, make_config, shorten
from bench.devices import DEVICES
from bench.links import parse_rate
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.compute import layer_durations
from bench.predict.measured import Measured
from bench.scale_model import parse_target
from bench.shape import PRESETS, GPTShape
from strategies import catalogue

# What a target is predicted for: one strategy of each exchange, and every placement of servers.
OF_TARGET: tuple[dict[str, object], ...] = (
    {"strategy": "ring_allreduce"},
    {"strategy": "mpi_ring"},
    {"strategy": "ddp"},
    {"strategy": "parameter_server", "placement": "colocated"},
    {"strategy": "parameter_server", "placement": "dedicated"},
    {"strategy": "parameter_server", "placement": "mixed"},
)
DEFAULT_MFU = 0.4
AUTO = "auto"
MAX_NODES, MAX_WORKERS = 1 << 14, 1 << 17
PerSecond = Callable[[Cell], float]


@dataclass(frozen=True)
class Change:
    """What a prediction changes of the measured cells; None: nothing."""

    num_nodes: tuple[int, ...] = ()
    num_servers: tuple[int, ...] = ()  # to try for each number of nodes; empty: the best
    ranks_per_node: int = 1
    link: str | None = None
    model: str | None = None
    device: str | None = None
    mfu: float = DEFAULT_MFU


def parse_counts(text: str, flag: str) -> tuple[int, ...]:
    """'8,64' -> (8, 64); BadInput for anything but whole numbers above zero."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 0 < int(word[:9]) <= MAX_NODES for word in words):
        raise BadInput(f"{flag}: {shorten(text)} is no list of whole numbers from 1 to {MAX_NODES}; write 8,64,512")
    return tuple(dict.fromkeys(map(int, words)))


def parse_servers(text: str | None) -> tuple[int, ...]:
    """'auto' or None -> (), '1,4' -> (1, 4); BadInput for anything else."""
    return () if text in (AUTO, None) else parse_counts(text, "--num-servers")


def check(change: Change) -> None:
    """Raise BadInput for a link, a model or a device that does not exist."""
    if change.link is not None:
        parse_rate(change.link)
    for flag, value, known in (("--model", change.model, PRESETS), ("--device", change.device, DEVICES)):
        if value is not None and value not in known:
            raise BadInput(f"{flag}: there is no {value!r}; choose one of {', '.join(known)}")


def templates(measured: Sequence[Measured]) -> list[RunConfig]:
    """Return one config per measured strategy and set of knobs: that of the most nodes, without numbers of ranks."""
    found: dict[str, RunConfig] = {}
    for one in sorted(measured, key=lambda one: one.cell.num_nodes):
        values = one.config.model_dump(exclude={"num_workers", "num_servers", "link", "slowdown", "speed_factor"})
        found[repr(values)] = one.config
    return list(found.values())


def of_target(text: str) -> tuple[list[RunConfig], Change]:
    """Return a target's strategies, and its nodes, link and device; BadInput if it is not understood."""
    target = parse_target(text)
    config = target.config
    configs = []
    for knobs in OF_TARGET:
        served = {"num_servers": 1} if knobs.get("placement") in ("dedicated", "mixed") else {}
        values = config.model_dump(exclude_unset=True, exclude={"strategy", "num_workers"})
        workers = config.num_workers if catalogue.find(knobs["strategy"]).has_servers else max(2, config.num_workers)
        configs.append(make_config({**values, **knobs, **served, "num_workers": workers}, "target"))
    servers = (target.num_servers,) if target.num_servers else ()
    return configs, Change(num_nodes=(config.num_workers,), num_servers=servers)


def of_sweep(configs: Iterable[RunConfig], ranks_per_node: int) -> list[Cell]:
    """Return the cells of a sweep file; BadInput if one's workers do not fill their nodes."""
    cells = [Cell(config, ranks_per_node) for config in configs]
    for config in (cell.config for cell in cells):
        if config.num_workers % ranks_per_node:
            raise BadInput(
                f"--nodes-of: {config.num_workers} workers ({config.strategy}) do not fill nodes of {ranks_per_node}; "
                f"give a number that divides num_workers of every cell"
            )
    return cells


def changed(
    configs: Iterable[RunConfig], change: Change, calibration: ClusterCalibration, per_second: PerSecond
) -> list[Cell]:
    """Return each config at each number of nodes, with the given link, model and device.

    Of several numbers of servers the fastest by `per_second`, unless they are given.
    """
    cells = []
    for nodes in change.num_nodes:
        for config in configs:
            based = _based(config, change, calibration)
            made = list(_on_nodes(based, nodes, change))
            if made and not change.num_servers:
                made = [max(made, key=per_second)]
            cells += made
    return list(dict.fromkeys(cells))


def check_servers(configs: Sequence[RunConfig], change: Change) -> None:
    """Raise BadInput for a number of servers that was given and that no cell will have."""
    cells = [cell for nodes in change.num_nodes for config in configs for cell in _on_nodes(config, nodes, change)]
    for servers in set(change.num_servers) - {cell.config.num_servers for cell in cells}:
        raise BadInput(
            f"--num-servers: no cell has {servers} servers: they leave no worker on {max(change.num_nodes)} nodes, "
            f"or no strategy here has servers on nodes of their own; give fewer servers or more nodes"
        )


def _on_nodes(config: RunConfig, nodes: int, change: Change) -> Iterator[Cell]:
    """Yield the cells of a config on so many nodes: one per number of servers that leaves a worker."""
    g = change.ranks_per_node
    if config.kind.single_process:
        if nodes == 1:
            yield Cell(config)
        return
    if config.kind.splits and (nodes * g) % config.model_parallel_size:
        return  # no whole number of copies of the model
    if not config.kind.has_servers or config.placement == "colocated":
        yield Cell(_sized(config, nodes * g, 0), g)
        return
    for servers in change.num_servers or _powers_of_two(nodes):
        workers = nodes - servers
        if workers >= 1 and (config.placement != "mixed" or servers <= workers):
            yield Cell(_sized(config, workers * g, servers), g)


def _powers_of_two(nodes: int) -> list[int]:
    return [2**i for i in range(nodes.bit_length()) if 2**i <= nodes // 2] or [1]


def _sized(config: RunConfig, workers: int, servers: int) -> RunConfig:
    if workers > MAX_WORKERS:
        raise BadInput(f"--num-nodes: {workers} workers are too many; at most {MAX_WORKERS}")
    return config.model_copy(update={"num_workers": workers, "num_servers": servers, "speed_factor": None})


def _based(config: RunConfig, change: Change, calibration: ClusterCalibration) -> RunConfig:
    """Return a config with the link, model and device of a change."""
    update: dict[str, object] = {}
    if change.link is not None:
        update["link"] = change.link
    if change.model is not None and change.model != config.model:
        update |= {"model": change.model, **dict.fromkeys(GPTShape.model_fields)}
        update |= _scaled_compute(config, PRESETS[change.model])
    if change.device is not None:
        rates = DEVICES[change.device].peak_flops_per_s
        precision = config.precision if config.precision != "fp32" else ("bf16" if "bf16" in rates else "fp16")
        nothing = ("compute_from", "emulated_forward_s", "emulated_backward_s", "emulated_optimizer_s")
        update |= {
            "compute": "emulated", "device_model": change.device, "device_mfu": change.mfu, "precision": precision,
            **dict.fromkeys(nothing),
        }  # fmt: skip
    return config.model_copy(update=update) if update else config


def _scaled_compute(config: RunConfig, shape: GPTShape) -> dict[str, object]:
    """Return the seconds of emulated compute for another model: in proportion to FLOPs, the update to parameters."""
    if config.emulated_forward_s is None or config.emulated_backward_s is None:
        return {}
    old = config.gpt
    factor = shape.flops_per_token * shape.block_size / (old.flops_per_token * old.block_size)
    update: dict[str, object] = {
        "emulated_forward_s": config.emulated_forward_s * factor,
        "emulated_backward_s": config.emulated_backward_s * factor,
    }
    if config.emulated_optimizer_s is not None:
        update["emulated_optimizer_s"] = config.emulated_optimizer_s * shape.num_parameters / old.num_parameters
    return update


def alone_tokens_per_s(cell: Cell, calibration: ClusterCalibration) -> float:
    """Return the throughput of one worker that communicates with nobody, the baseline of scaling efficiency."""
    found = layer_durations(cell.config, calibration)
    step_s = found.compute_s + found.optimizer_s + calibration.step_overhead_s
    return cell.config.batch_size * cell.shape.block_size / step_s if step_s else 0.0
