"""The sweep file: blocks of lists whose cross products are the cells."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from bench.config import AllKnobs, BadInput, RunConfig, first_problem, make_config, read_knobs, read_yaml, shorten
from bench.config.network import DEFAULT_CONGESTION_CONTROL, MAX_NODES, CongestionControl
from bench.links import parse_delay, slower
from bench.sweep import work
from strategies import catalogue
from strategies.catalogue import Entry
from strategies.options import STRATEGY_KNOBS, Given

MAX_CELLS, MAX_RUNS = 10_000, work.MAX_REPEATS
MAX_BUDGET_S = 1e8  # 3 years


class EmulatedCluster(Given):
    """The emulated nodes that cells run on unless they set other links (`link: null`: this machine itself)."""

    num_nodes: int = Field(ge=1, le=MAX_NODES)
    link: str
    delay: str | None = None
    congestion_control: CongestionControl = DEFAULT_CONGESTION_CONTROL


@dataclass(frozen=True)
class Cell:
    """A cell of a sweep, and what its block says beside its knobs."""

    config: RunConfig
    stage: int
    measure_s: float | None
    repeats: int

    @property
    def is_timed(self) -> bool:
        """Whether its steps follow from the time of a real step."""
        return self.measure_s is not None and self.config.compute == "real"


class Sweep(Given):
    """A sweep: `grid` blocks joined with `defaults`, less `exclude`, each cell run `repeats` times."""

    defaults: dict[str, Any] = Field({})
    grid: list[dict[str, Any]] = Field(min_length=1)
    exclude: list[dict[str, Any]] = Field([])
    repeats: int = Field(1, ge=1, le=MAX_RUNS)
    replacements: int | None = Field(None, ge=0, le=MAX_RUNS)
    cluster: EmulatedCluster | None = None
    precision_target: float | None = Field(None, gt=0, lt=1)
    budget: str | None = None
    slowdown: float | None = Field(None, ge=1, le=1e3)  # None: `psring sweep` decides and writes it into its folder
    probed: list[work.OneWorker] = Field([])  # `psring sweep` writes it into its folder

    @model_validator(mode="after")
    def _check_stopping(self) -> Sweep:
        if self.precision_target is not None and self.budget is None:
            raise ValueError("precision_target: may never be reached; give a budget too (budget: 30min)")
        if self.budget is not None and self.budget_s is None:
            raise ValueError(f"budget: {shorten(self.budget)} is not a time above zero; write 90s, 30min or 2h")
        return self

    @property
    def budget_s(self) -> float | None:
        """Seconds after which one call of `psring sweep` begins no other run; None: no limit, or no such time."""
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(s|min|h)", self.budget or "")
        seconds = float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]] if found else 0.0
        return seconds if 0 < seconds <= MAX_BUDGET_S else None

    @property
    def max_replacements(self) -> int:
        """Launches per cell that may replace rejected ones: `replacements`, else half of the repeats, at least 1."""
        return max(1, self.repeats // 2) if self.replacements is None else self.replacements

    def runs(self, where: str) -> list[RunConfig]:
        """Return the cells in file order, each once; BadInput names the block that is wrong and `where` it is."""
        return [cell.config for cell in self.cells(where)]

    def stages(self, where: str) -> list[list[Cell]]:
        """Return the cells of each stage, in the order of stages."""
        cells = self.cells(where)
        return [[c for c in cells if c.stage == stage] for stage in sorted({cell.stage for cell in cells})]

    def cells(self, where: str) -> list[Cell]:
        """Return what `runs` returns, with what the blocks say about each cell beside its knobs."""
        self._check_size(where)
        cells: dict[str, Cell] = {}
        rules = [_Rule.make(values, number, where) for number, values in enumerate(self.exclude, start=1)]
        probed = work.by_probe(self.probed)
        for number, block in enumerate(self.grid, start=1):
            here = f"{where}: grid block {number}"
            names = _strategies({**self.defaults, **block}, here)
            for values in cross_product(block):
                keys, knobs = work.split({**self.defaults, **values}, here)
                merged = self._on_cluster(_read_by(knobs, block, names, here))
                if rules and _excluded(rules, read_knobs(merged, here)):
                    continue
                config = work.with_steps(
                    slowed(make_config(merged, here), self.slowdown or 1.0), keys.measure_s, probed,
                    warmup_given="warmup_steps" in {**self.defaults, **values},
                )  # fmt: skip
                if self.cluster and config.link and config.world_size > self.cluster.num_nodes:
                    raise BadInput(
                        f"{here}: {config.world_size} ranks need as many nodes; "
                        f"cluster has num_nodes: {self.cluster.num_nodes}"
                    )
                repeats = keys.repeats or self.repeats
                cells.setdefault(config.digest(), Cell(config, keys.stage, keys.measure_s, repeats))
        for rule in rules:
            if not rule.matched:
                raise BadRule(
                    rule.number, where, f"no cell of the grid has {rule.describe()}; correct it, or leave it out"
                )
        if not cells:
            raise BadInput(f"{where}: exclude leaves no cell; remove a rule")
        return list(cells.values())

    def _check_size(self, where: str) -> None:
        """Raise BadInput for a list without a value and for more runs than anyone can do, before they are listed."""
        num_cells = num_runs = 0
        for number, block in enumerate(self.grid, start=1):
            sizes = {name: len(value) for name, value in block.items() if isinstance(value, list)}
            empty = next((name for name, size in sizes.items() if not size), None)
            if empty is not None:
                raise BadInput(f"{where}: grid block {number}: {shorten(empty)}: the list is empty; give it a value")
            num_cells += math.prod(sizes.values())
            repeats = {**self.defaults, **block}.get("repeats", self.repeats)
            num_runs += math.prod(sizes.values()) * (repeats if isinstance(repeats, int) else self.repeats)
        if num_cells > MAX_CELLS:
            raise BadInput(f"{where}: {num_cells} cells are too many; at most {MAX_CELLS} are planned")
        if num_runs > MAX_RUNS:
            raise BadInput(f"{where}: {num_runs} runs are too many; at most {MAX_RUNS} are planned")

    def _on_cluster(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return a cell's values, with the cluster's links unless the cell has its own."""
        if self.cluster is None or values.get("link", "") is None:
            return values
        return {**self.cluster.model_dump(exclude={"num_nodes"}), **values}


class BadRule(BadInput):
    """A rule of `exclude` that no cell can have."""

    def __init__(self, number: int, where: str, problem: str) -> None:
        super().__init__(f"{where}: exclude rule {number}: {problem}")
        self.number = number


@dataclass
class _Rule:
    """One entry of `exclude`: the values that a cell must have, validated, and whether any cell had them."""

    values: dict[str, object]
    number: int
    matched: bool = False

    @staticmethod
    def make(given: Mapping[str, Any], number: int, where: str) -> _Rule:
        """Validate a rule; BadRule for a key or a value that no cell can have."""
        for key, value in given.items():
            if isinstance(value, list):
                raise BadRule(number, where, f"{shorten(key)}: a list; write one rule for each value")
        if not given:
            raise BadRule(number, where, "names no knob, and would exclude every cell; remove it")
        try:
            found = read_knobs(given, f"exclude rule {number}")
        except BadInput as error:
            raise BadRule(number, where, str(error).partition(": ")[2]) from None
        return _Rule({key: getattr(found, key) for key in given}, number)

    def describe(self) -> str:
        """The values of the rule."""
        return " and ".join(f"{key}: {shorten(value)}" for key, value in self.values.items())


def _excluded(rules: Sequence[_Rule], cell: AllKnobs) -> bool:
    """Return whether any rule's values are the cell's, defaults included; mark the rules that match."""
    matching = [rule for rule in rules if all(getattr(cell, key) == value for key, value in rule.values.items())]
    for rule in matching:
        rule.matched = True
    return bool(matching)


def slowed(config: RunConfig, factor: float) -> RunConfig:
    """Return the config with links, delay and emulated compute slower by one factor; others as they are."""
    if factor == 1 or (config.link is None and config.compute != "emulated"):
        return config
    values: dict[str, object] = {"slowdown": config.slowdown * factor}
    if config.link:
        values["link"] = slower(config.link, factor)
    if config.delay:
        values["delay"] = f"{parse_delay(config.delay) * factor * 1e6:.9g}us"
    return config.model_copy(update=values)


def cross_product(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{a: [1, 2], b: 3} -> [{a: 1, b: 3}, {a: 2, b: 3}]; the last key varies fastest."""
    axes = [value if isinstance(value, list) else [value] for value in block.values()]
    return [dict(zip(block, values, strict=True)) for values in itertools.product(*axes)]


def _strategies(block: Mapping[str, Any], where: str) -> list[Entry]:
    """What is known of each strategy that a block names."""
    named = block.get("strategy", catalogue.LOCAL.name)
    try:
        return [
            catalogue.find(catalogue.full_name(str(name))) for name in (named if isinstance(named, list) else [named])
        ]
    except ValueError as error:
        raise BadInput(f"{where}: strategy: {error}") from None


def _read_by(
    values: dict[str, Any], block: Mapping[str, Any], strategies: Sequence[Entry], where: str
) -> dict[str, Any]:
    """Leave out the knobs that only other strategies of the block read; BadInput for one that none of them reads."""
    own = catalogue.find(catalogue.full_name(str(values.get("strategy", catalogue.LOCAL.name))))
    unread = [name for name in values if name in STRATEGY_KNOBS and name not in own.knobs]
    read_by_others = {name for name in unread if any(name in each.knobs for each in strategies)}
    for name in unread:
        if name in block and name not in read_by_others:
            raise BadInput(f"{where}: {name}: {own.name} does not read it; leave it out")
    return {name: value for name, value in values.items() if name not in read_by_others}


def read_recorded_sweep(path: Path) -> Sweep:
    """Return the sweep of a results folder, without rules of `exclude` that no cell has: earlier versions took them."""
    sweep = read_sweep(path)
    while True:
        try:
            sweep.cells(str(path))
        except BadRule as error:
            others = [rule for number, rule in enumerate(sweep.exclude, start=1) if number != error.number]
            sweep = sweep.model_copy(update={"exclude": others})
        else:
            return sweep


def read_sweep(path: Path, given: Mapping[str, object] | None = None) -> Sweep:
    """Read a sweep file; keys in `given` override it. BadInput if it is missing, no YAML, or has an unknown key."""
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise BadInput(f"{path}: there is no such sweep file; try bench/sweeps/demo.yaml") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: a sweep file is a mapping with the key grid")
    try:
        return Sweep.model_validate({**content, **(given or {})})
    except ValidationError as error:
        raise BadInput(f"{path}: {first_problem(error, Sweep.model_fields)}") from None
