"""The sweep file: blocks of lists whose cross products are the cells."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.config import BadInput, RunConfig, first_problem, make_config, nearest
from bench.config.network import DEFAULT_CONGESTION_CONTROL, CongestionControl
from strategies import catalogue
from strategies.catalogue import Entry
from strategies.options import STRATEGY_KNOBS


class EmulatedCluster(BaseModel):
    """The emulated nodes that cells run on unless they set other links (`link: null`: this machine itself)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_nodes: int = Field(ge=1)
    link: str
    delay: str | None = None
    congestion_control: CongestionControl = DEFAULT_CONGESTION_CONTROL


class Sweep(BaseModel):
    """A sweep: `grid` blocks joined with `defaults`, less `exclude`, each cell run `repeats` times."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    defaults: dict[str, Any] = {}
    grid: list[dict[str, Any]] = Field(min_length=1)
    exclude: list[dict[str, Any]] = []
    repeats: int = Field(1, ge=1)
    cluster: EmulatedCluster | None = None
    precision_target: float | None = Field(None, gt=0, lt=1)
    budget: str | None = None

    @model_validator(mode="after")
    def _check_stopping(self) -> Sweep:
        if self.precision_target is not None and self.budget is None:
            raise ValueError("precision_target: may never be reached; give a budget too (budget: 30min)")
        if self.budget is not None and self.budget_s is None:
            raise ValueError(f"budget: {self.budget!r} is not a time above zero; write 90s, 30min or 2h")
        return self

    @property
    def budget_s(self) -> float | None:
        """Seconds after which one call of `psring sweep` begins no other run; None: no limit."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h)", self.budget or "")
        return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]] or None if found else None

    def runs(self, where: str) -> list[RunConfig]:
        """Return the cells in file order, each once; BadInput names the block that is wrong and `where` it is."""
        cells: dict[str, RunConfig] = {}
        for number, block in enumerate(self.grid, start=1):
            here = f"{where}: grid block {number}"
            names = _strategies({**self.defaults, **block}, here)
            for values in cross_product(block):
                merged = self._on_cluster(_read_knobs({**self.defaults, **values}, block, names, here))
                if any(_matches(rule, merged) for rule in self.exclude):
                    continue
                config = make_config(merged, here)
                if self.cluster and config.link and config.world_size > self.cluster.num_nodes:
                    raise BadInput(
                        f"{here}: {config.world_size} ranks need as many nodes; "
                        f"cluster has num_nodes: {self.cluster.num_nodes}"
                    )
                cells.setdefault(config.digest(), config)
        if not cells:
            raise BadInput(f"{where}: exclude leaves no cell; remove a rule")
        return list(cells.values())

    def _on_cluster(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return a cell's values, with the cluster's links unless the cell has its own."""
        if self.cluster is None or values.get("link", "") is None:
            return values
        return {**self.cluster.model_dump(exclude={"num_nodes"}), **values}


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


def _read_knobs(
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


def _matches(rule: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(values.get(key) == value for key, value in rule.items())


def read_sweep(path: Path, given: Mapping[str, object] | None = None) -> Sweep:
    """Read a sweep file; keys in `given` override it. BadInput if it is missing, no YAML, or has an unknown key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: there is no such sweep file; try bench/sweeps/demo.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: a sweep file is a mapping with the key grid")
    try:
        sweep = Sweep.model_validate({**content, **(given or {})})
    except ValidationError as error:
        raise BadInput(f"{path}: {first_problem(error, Sweep.model_fields)}") from None
    for rule in sweep.exclude:
        for key in rule:
            if key not in RunConfig.model_fields:
                raise BadInput(f"{path}: exclude: unknown key {key!r}{nearest(key, RunConfig.model_fields)}")
    return sweep
