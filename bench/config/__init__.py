"""The configuration of a run: RunConfig, its groups of knobs, how it is read, and the errors of bad input."""

from __future__ import annotations

from bench.config.errors import AgreedBadInput, BadInput, DiskFull
from bench.config.measuring import GATE_STEPS, MIN_CONVERGENCE
from bench.config.network import CLUSTER_VARIABLE
from bench.config.reading import first_problem, make_config, nearest, read_knobs, read_tuned, shorten
from bench.config.run import GROUPS, AllKnobs, RunConfig
from bench.config.strict_yaml import read_yaml

__all__ = [
    "CLUSTER_VARIABLE",
    "GATE_STEPS",
    "GROUPS",
    "MIN_CONVERGENCE",
    "AgreedBadInput",
    "AllKnobs",
    "BadInput",
    "DiskFull",
    "RunConfig",
    "first_problem",
    "make_config",
    "nearest",
    "read_knobs",
    "read_tuned",
    "read_yaml",
    "shorten",
]
