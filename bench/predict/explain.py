"""Why a cell takes as long as it does: its step divided among what it spends time on.

The costs of hosts and links are fitted to the folder's own cells (`fit`). A cell's step is then predicted without any
cost, and with one cost after the other: what each adds is its part. What the sum leaves of the measured step is
`unexplained_s`, positive or negative. Cells whose link is not known are divided by their measured phases only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.config import BadInput, RunConfig
from bench.predict import advice, measured
from bench.predict.advice import Advice
from bench.predict.calibration import ClusterCalibration
from bench.predict.cell import Cell
from bench.predict.compute import layer_durations
from bench.predict.fit import fit
from bench.predict.measured import Measured
from bench.predict.step import step_time
from bench.records import PlannedRun

COMPUTE, STRAGGLERS, LINK, HOT, SUMS = "computing", "stragglers", "busiest link", "hot tensor", "sums and updates"
BUBBLE = "pipeline bubble"
MESSAGES, CYCLE, LATENESS, LOOP, EXPOSED = "messages", "fusion cycle", "lateness", "training loop", "exposed"
PARTS = {
    COMPUTE: "forward, backward and the workers' update, of a worker of mean speed",
    STRAGGLERS: "what the slowest worker computes longer",
    BUBBLE: "what a stage of a pipeline waits for others, if messages took no time",
    LINK: "the part of the busiest link's time that computing cannot hide",
    HOT: "what it takes longer because whole tensors are placed on servers",
    SUMS: "adding, copying and updating: on servers, or in a ring on workers",
    MESSAGES: "latency and CPU time of messages",
    CYCLE: "waiting for the cycle of Horovod's fusion",
    LATENESS: "layers that end after they should: emulated compute only",
    LOOP: "whatever else every step takes",
    EXPOSED: "communication that is not hidden, not divided, because the links' rate is not known",
}
FREE: dict[str, object] = {
    "latency_s": 0.0, "message_cpu_s": 0.0, "add_s_per_byte": 0.0, "copy_s_per_byte": 0.0, "cycle_s": 0.0,
    "step_overhead_s": 0.0,
}  # fmt: skip
NO_CYCLE_S = 1e-9
MAX_FITTED = 20  # cells: each costs up to half a second, and more hardly make the costs more certain


@dataclass(frozen=True)
class Explanation:
    """One cell's step, seconds."""

    cell: str  # its name in runs.jsonl
    config: RunConfig
    step_s: float  # measured: median over launches of the mean step
    parts: dict[str, float]  # names of PARTS; those that are nothing are left out
    shortest_s: float | None  # the step if nothing but computing and links took time; None: not known
    bound: str  # the resource that takes longest; empty where it is not known
    advice: Advice | None  # what would gain most; None: nothing worth having, or not known
    why_no_bound: str = ""  # why shortest_s is not known

    @property
    def unexplained_s(self) -> float:
        """What the parts do not add up to; negative if they are too long."""
        return self.step_s - sum(self.parts.values())

    @property
    def unexplained_share(self) -> float:
        """The same over the step."""
        return self.unexplained_s / self.step_s

    @property
    def title(self) -> str:
        """The cell in a few words."""
        return PlannedRun(config=self.config).describe()


def of_folder(folder: Path) -> list[Explanation]:
    """Return the explanation of every ok cell of a folder; BadInput if there is none."""
    return explain(measured.read(folder))


def explain(cells: Sequence[Measured]) -> list[Explanation]:
    """Return the explanation of every cell, in the order given."""
    known = [one for one in cells if is_known(one)]
    calibration = fit(known[:: math.ceil(len(known) / MAX_FITTED)]).calibration if known else ClusterCalibration()
    return [of_cell(one, calibration) if is_known(one) else of_phases(one) for one in cells]


def is_known(one: Measured) -> bool:
    """Whether the model has the cell's links, its strategy and the time of its layers."""
    return not why_unknown(one)


def why_unknown(one: Measured) -> str:
    """Return why the model cannot divide a cell's step; empty if it can."""
    if one.config.link is None:
        return "the rate of its links is not known (ranks of one machine, or a network that psring did not make)"
    if not one.config.kind.exchange:
        return f"{one.config.strategy} has no model of its messages"
    try:
        layer_durations(one.config, ClusterCalibration(flops_per_s=1.0))
    except BadInput:
        return "the file of its layers' times (compute_from) is elsewhere"
    return ""


def of_cell(one: Measured, calibration: ClusterCalibration) -> Explanation:
    """Return a cell's step, divided by the costs that it is predicted from."""
    whole = step_time(one.cell, calibration)
    parts = dict(_parts(one, calibration))
    found = advice.ranked(one.cell, calibration)
    return Explanation(
        one.name, one.config, one.step_s, {name: value for name, value in parts.items() if abs(value) > 1e-7},
        shortest_s=sum(parts[name] for name in (COMPUTE, STRAGGLERS, BUBBLE, LINK, HOT)), bound=whole.bound,
        advice=found[0] if found else None,
    )  # fmt: skip


def of_phases(one: Measured) -> Explanation:
    """Return a cell's step, divided by the phases that its workers measured."""
    parts = {
        COMPUTE: one.forward_backward_s + one.optimizer_s, EXPOSED: one.exposed_communication_s, LOOP: one.data_s,
    }  # fmt: skip
    alone = not one.config.kind.communicates or one.config.world_size == 1
    why = "" if alone else why_unknown(one)
    return Explanation(one.name, one.config, one.step_s, parts, None, "compute" if alone else "", None, why)


def _parts(one: Measured, calibration: ClusterCalibration) -> Iterator[tuple[str, float]]:
    """Yield what each cost adds to the step, seconds; together the predicted step."""
    free = calibration.model_copy(update=FREE)
    base = step_time(_without(one.cell, sharding="ranges"), free)
    yield COMPUTE, base.compute_s
    yield STRAGGLERS, base.straggler_s
    yield BUBBLE, base.bubble_s
    yield LINK, base.step_s - base.compute_s - base.straggler_s - base.bubble_s
    before = step_time(_without(one.cell), free).step_s
    yield HOT, before - base.step_s
    with_sums = _with(free, calibration, "add_s_per_byte", "copy_s_per_byte")
    with_messages = _with(with_sums, calibration, "latency_s", "message_cpu_s")
    steps = {
        SUMS: step_time(_without(one.cell, update=True), with_sums).step_s,
        MESSAGES: step_time(_without(one.cell, update=True), with_messages).step_s,
        CYCLE: step_time(one.cell, _with(with_messages, calibration, "cycle_s")).step_s,
    }
    for name, step_s in steps.items():
        yield name, step_s - before
        before = step_s
    overhead_s = step_time(one.cell, calibration).step_s - before
    late_s = min(overhead_s, _lateness(one, calibration))
    yield LATENESS, late_s
    yield LOOP, overhead_s - late_s


def _lateness(one: Measured, calibration: ClusterCalibration) -> float:
    """Return how much longer forward and backward took than they should; 0 for real compute."""
    if one.config.compute != "emulated":
        return 0.0
    return max(0.0, one.forward_backward_s - layer_durations(one.config, calibration).compute_s)


def _with(free: ClusterCalibration, calibration: ClusterCalibration, *names: str) -> ClusterCalibration:
    return free.model_copy(update={name: getattr(calibration, name) for name in names})


def _without(cell: Cell, update: bool = False, **knobs: object) -> Cell:
    """Return the cell without a fusion cycle and, unless `update`, without the time of updates on servers."""
    config = cell.config
    if "cycle_time_s" in config.kind.knobs:
        knobs["cycle_time_s"] = NO_CYCLE_S
    if config.kind.has_servers and config.compute == "emulated" and not update:
        knobs["emulated_optimizer_s"] = 0.0
    return Cell(config.model_copy(update=knobs), cell.ranks_per_node, cell.two_level, cell.algorithm)


def describe(found: Explanation) -> list[str]:
    """Return the lines of one cell for people."""
    far = f", no bound: {found.why_no_bound}" if found.why_no_bound else ""
    if found.shortest_s is not None:
        above = found.step_s / found.shortest_s - 1
        far = f", {abs(above):.1%} {'above' if above >= 0 else 'below'} what computing and links allow "
        far += f"({_ms(found.shortest_s)}, {found.bound})"
    parts = [f"{name} {_ms(value)}" for name, value in found.parts.items()]
    parts.append(f"unexplained {_ms(found.unexplained_s)} ({found.unexplained_share:+.1%})")
    lines = [f"{found.title}: {_ms(found.step_s)} a step{far}", f"  {', '.join(parts)}"]
    if found.advice:
        lines.append(f"  helps most: {found.advice.text}, {found.advice.gain:.2f} times as fast (predicted)")
    elif found.shortest_s is not None:
        lines.append(f"  no change of one knob is predicted to gain {advice.WORTH_IT - 1:.0%}")
    return lines


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.4g} ms"


def summary(found: Sequence[Explanation]) -> str:
    """Return how much of the steps the parts do not explain, and what that is worth."""
    shares = [abs(one.unexplained_share) for one in found]
    by_phases = sum(one.shortest_s is None for one in found)
    words = [
        f"unexplained: {median(shares):.1%} of a step in the median of {len(found)} cells, {max(shares):.1%} at most"
    ]
    words += ["the costs are fitted to these cells"] * (by_phases < len(found))
    words += [f"{by_phases} cells without a known link are divided by measured phases only"] * (by_phases > 0)
    return "; ".join(words)


def only(found: Sequence[Explanation], cell: str | None) -> list[Explanation]:
    """Return the cells whose names begin so, all for None; BadInput if there is none."""
    kept = [one for one in found if cell is None or one.cell.startswith(cell)]
    if not kept:
        raise BadInput(f"--cell: no ok cell's name begins with {cell!r}; the names are in summary.csv")
    return kept
