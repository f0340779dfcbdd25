"""What a class of hosts and links costs: the numbers that a prediction is made from, beside the cell's own knobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from bench.config import BadInput, first_problem
from bench.config.emulation import MAX_STEP_S, SPEEDS
from bench.durations import Calibration
from bench.files import read_json, write_whole
from bench.links import MAX_RATE, parse_rate
from bench.nodes.layout import PAYLOAD_SHARE
from strategies.options import MAX_BYTES, MAX_RANKS, Given


def _ordered(found: tuple[float, float]) -> tuple[float, float]:
    if found[0] > found[1]:
        raise ValueError(f"{found[0]} to {found[1]} is the wrong way round")
    return found


def _rate(text: str) -> str:
    try:
        parse_rate(text)
    except BadInput as error:
        raise ValueError(str(error)) from None
    return text


# Bounds are beyond what machines have: a number outside has another unit, or is damaged.
Seconds = Annotated[float, Field(ge=0, le=10)]  # of a message or a pause
StepSeconds = Annotated[float, Field(ge=0, le=MAX_STEP_S)]  # of a step or a layer
SecondsPerByte = Annotated[float, Field(ge=0, le=1e-3)]
BytesPerSecond = Annotated[float, Field(ge=1, le=MAX_RATE)]
Speed = Annotated[float, Field(ge=SPEEDS[0], le=SPEEDS[1])]
Nodes = Annotated[int, Field(ge=1, le=MAX_RANKS)]
Layers = Annotated[dict[str, StepSeconds], Field(min_length=1)]
Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]
Link = Annotated[str, AfterValidator(_rate)]


class ClusterCalibration(Given):
    """Costs of hosts and links, with the symbols of docs/cost-models.md. Seconds and bytes."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    link: Link | None = None
    """Nominal rate of the link it was measured on (25gbit); none: emulated nodes, each cell names its own."""
    bytes_per_s: BytesPerSecond | None = None
    """B: goodput of that link in each direction; none: payload_share of the nominal rate."""
    payload_share: Annotated[float, Field(gt=0, le=1)] = PAYLOAD_SHARE
    """Goodput over nominal rate, for links that were not measured."""
    local_bytes_per_s: BytesPerSecond | None = None
    """Goodput between two ranks of one node; none: 1 / copy_s_per_byte."""
    latency_s: Seconds = 50e-6
    """Alpha: one message from rank to rank, without its bytes."""
    message_cpu_s: Seconds = 10e-6
    """o: CPU time of a rank per message that it sends or receives."""
    add_s_per_byte: SecondsPerByte = 0.2e-9
    """Gamma: adding one received byte to a sum."""
    copy_s_per_byte: SecondsPerByte = 0.1e-9
    """Kappa: copying one byte from or into a message."""
    burst_bytes: Annotated[float, Field(ge=0, le=MAX_BYTES)] = 0.0
    """Bytes that a link passes at once after a pause (the token bucket of emulated links)."""
    duplex_factor: Annotated[float, Field(ge=1, le=2)] = 1.0
    """Phi: how much longer two opposite transfers take at once than one; 1 full duplex, 2 half."""
    shard_imbalance: Annotated[float, Field(ge=1, le=MAX_RANKS)] | None = None
    """Lambda: the most that a server holds over its share; none: from the shapes of the tensors."""
    cycle_s: Seconds = 0.0
    """Tau: what a fused allreduce waits for before it begins, beyond the cell's cycle_time_s."""
    step_overhead_s: StepSeconds = 0.0
    """Part of every step that is neither the layers' nor communication (Python, the loop)."""
    forward_s: Layers | None = None
    """t_f by layer of one step of a worker of speed 1; none: from the cell (emulated compute) or flops_per_s."""
    backward_s: Layers | None = None
    """b_l by layer, likewise."""
    flops_per_s: Annotated[float, Field(ge=1, le=1e20)] | None = None
    """Rate of forward and backward, for models that were not measured."""
    optimizer_s_per_parameter: SecondsPerByte | None = None
    """An update of one parameter; none: from the cell (emulated compute), or as fast as memory is copied."""
    compute_cv: Annotated[float, Field(ge=0, le=100)] | None = None
    """Coefficient of variation of a worker's step; none: the cell's."""
    speed_factors: Annotated[tuple[Speed, ...], Field(min_length=1)] | None = None
    """Speed of each worker; none: the cell's. Workers beyond the last one have the last one's."""
    worker_message_cpu_s: Seconds | None = None
    """CPU time of a worker per message, the same message in a server's exchange; shown, not used."""
    worker_cpu_s_per_byte: SecondsPerByte | None = None
    """CPU time of a worker per byte sent or received, sockets included; shown, not used."""
    server_message_cpu_s: Seconds | None = None
    """CPU time of a server per message; shown, not used."""
    server_cpu_s_per_byte: SecondsPerByte | None = None
    """CPU time of a server per byte received or sent, sums included; shown, not used."""
    flood_s_per_message: Seconds | None = None
    """Seconds per message of one byte, sent as fast as possible; shown, not used."""
    ping_pong_s: dict[str, StepSeconds] | None = None
    """Seconds one way by bytes of a message; shown, not used."""
    cores: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """Cores that all ranks share (emulated nodes); none: every rank has its own."""
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """90 % interval of each number that was fitted or measured."""
    measured_nodes: Annotated[tuple[Nodes, Nodes], AfterValidator(_ordered)] | None = None
    """Fewest and most nodes of the runs that it was fitted from."""
    source: str = "defaults, not measured"
    """Where the numbers come from."""

    @model_validator(mode="after")
    def _same_layers(self) -> ClusterCalibration:
        if (self.forward_s or {}).keys() != (self.backward_s or {}).keys():
            raise ValueError("forward_s and backward_s: they have other layers; give both of the same model")
        return self

    def goodput(self, link: str | None) -> float:
        """Return bytes per second of a link, given by its nominal rate; None: the link that was measured.

        BadInput if neither is known.
        """
        if link is not None and link != self.link:
            return parse_rate(link) / 8 * self.payload_share
        if self.bytes_per_s is not None:
            return self.bytes_per_s
        if self.link is None:
            raise BadInput("link: no rate is known; give --num-nodes with --link, or a calibration that measured it")
        return parse_rate(self.link) / 8 * self.payload_share

    def crowding(self, ranks: int) -> float:
        """Return how much longer a rank's CPU work takes because all ranks share the machine's cores."""
        return max(1.0, ranks / self.cores) if self.cores else 1.0

    @property
    def node_bytes_per_s(self) -> float:
        """Goodput between ranks of one node."""
        return self.local_bytes_per_s or 1 / max(self.copy_s_per_byte, 1e-12)

    def write(self, path: Path) -> None:
        """Write the file that `--calibration` reads."""
        write_whole(path, self.model_dump_json(indent=2, exclude_none=True) + "\n")

    @staticmethod
    def read(path: Path) -> ClusterCalibration:
        """Read such a file, or one of psring calibrate; BadInput if it is neither."""
        try:
            return ClusterCalibration.model_validate(_of_measured(read_json(path)))
        except ValidationError as error:
            problem = first_problem(error, ClusterCalibration.model_fields)
        except ValueError as error:
            problem = f"it cannot be read ({error})"
        raise BadInput(f"--calibration: {path}: {problem}; make it anew: psring calibrate")


def _of_measured(content: Any) -> Any:
    """Return the calibration in a file of psring calibrate: its section `cluster` and the layers' times."""
    if not isinstance(content, dict) or "cluster" not in content:
        return content
    found = Calibration.model_validate(content)
    per_parameter = found.optimizer_s / found.shape.num_parameters
    layers = {"forward_s": found.forward_s, "backward_s": found.backward_s}
    return {**(found.cluster or {}), **layers, "optimizer_s_per_parameter": per_parameter}
