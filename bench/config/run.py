"""RunConfig, the one value that describes a run.

A knob has one spelling everywhere: the field here or in `strategies.options`, the YAML key, the ``--flag``, the JSON
key and the table column. Its docstring is its only definition.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import model_validator

from bench.config import emulation, measuring, model, model_parallel, network, topology, training, wire
from bench.config.emulation import Compute, Emulation, parse_speeds
from bench.config.measuring import Measuring
from bench.config.model import Model
from bench.config.network import Network
from bench.config.topology import Workers
from bench.config.training import Data, Optimizer
from strategies.closed_forms import payload_bytes
from strategies.options import GradientOptions, Knobs, ModelParallelOptions, Options, TopologyOptions, WireOptions

CHECKS = (
    topology.check,
    model_parallel.check,
    wire.check,
    training.check,
    model.check,
    network.check,
    measuring.check,
    emulation.check,
)
# Knobs that only say which runs are accepted: the same cell, whatever their values.
NOT_MEASURED = {"allow_nonfinite_loss", "max_foreign_cpu_share", "timeout_s"}
IN_OLD_NAMES = {"timeout_s": 600.0}  # so that cells keep the names that committed folders have for them
# The same, where these have their default.
ADDED_LATER = {"slowdown", "sharding", "reshard_after_forward", *ModelParallelOptions.model_fields}
# In the order of the help text.
GROUPS: dict[str, tuple[type[Knobs], ...]] = {
    "topology": (Workers, TopologyOptions),
    "model parallelism": (ModelParallelOptions,),
    "model": (Model,),
    "data": (Data,),
    "optimizer": (Optimizer, GradientOptions),
    "measuring": (Measuring,),
    "wire": (WireOptions,),
    "network": (Network,),
    "emulation": (Compute, Emulation),
}


# pydantic orders fields from the last base to the first.
class AllKnobs(Measuring, Network, Emulation, Compute, Optimizer, Data, Model, Options, Workers):
    """Every knob with a valid value of its own; whether they fit together is not checked."""

    @model_validator(mode="before")
    @classmethod
    def _default_servers(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values  # refused by pydantic
        return {"num_servers": topology.default_num_servers(values), **model_parallel.defaults(values), **values}


class RunConfig(AllKnobs):
    """One run, frozen and validated. Every rank of a run holds an equal one."""

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        for check in CHECKS:
            for problem in check(self):
                raise ValueError(problem)
        return self

    def given(self, names: Iterable[str]) -> list[str]:
        """Return the knobs that differ from their defaults."""
        return [name for name in names if getattr(self, name) != RunConfig.model_fields[name].default]

    def role(self, rank: int) -> str:
        """Return the role of a rank; the last ranks are servers."""
        return "worker" if rank < self.num_workers else "server"

    @property
    def world_size(self) -> int:
        """Number of ranks: workers and dedicated servers."""
        return self.num_workers + self.num_servers

    @property
    def num_replicas(self) -> int:
        """Number of copies of the model that are trained; every worker has one of its own, or a part of one."""
        return max(1, self.num_workers // self.model_parallel_size)

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step, all copies of the model together."""
        return self.num_replicas * self.batch_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step, all workers together."""
        return self.global_batch_size * self.gpt.block_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run, warm-up included."""
        return self.warmup_steps + self.steps

    @property
    def wire_bytes(self) -> int:
        """Bytes of one copy of all gradients (or parameters) on the wire: M in the cost models."""
        return payload_bytes(self, self.gpt.num_parameters)

    @property
    def speeds(self) -> list[float]:
        """Each worker's speed relative to the times of the layers."""
        return parse_speeds(self.speed_factor, self.num_workers)

    @property
    def exact(self) -> bool:
        """Whether the run promises the model that one process trains, up to rounding."""
        return self.kind.exact and self.synchronous and self.compression == "none" and self.sync_every == 1

    @property
    def workers_agree(self) -> bool:
        """Whether the run promises that all workers have the same weights after the last step."""
        return self.kind.exact and self.synchronous

    @property
    def streams_weights(self) -> bool:
        """Whether new weights travel, in the wire dtype, from the rank that updated each."""
        return self.kind.streams_weights and self.server_role == "update"

    def digest(self) -> str:
        """Return twelve hexadecimal digits that identify what this config measures."""
        left_out = NOT_MEASURED | (ADDED_LATER - set(self.given(ADDED_LATER)))
        values = {**self.model_dump(mode="json", exclude=left_out), **IN_OLD_NAMES}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def unsupported(self) -> str | None:
        """Return why no library can run this valid config, None if one can."""
        reasons = self.kind.unsupported.items()
        of_library = (why for (knob, value), why in reasons if getattr(self, knob) == value)
        return next(itertools.chain(of_library, self._added_in_wire_dtype(), model_parallel.unsplittable(self)), None)

    def _added_in_wire_dtype(self) -> Iterator[str]:
        """Yield why gradients of several passes are not added in fp32: no bound of the gate would hold then."""
        if self.kind.gathers_weights and self.gradient_accumulation > 1 and self.wire_dtype != "fp32":
            yield (
                f"FSDP2 adds the gradients of several passes in {self.wire_dtype}; "
                "use wire_dtype: fp32, or gradient_accumulation: 1"
            )
