"""The strategy, and its numbers of workers and servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from strategies import catalogue
from strategies.closed_forms import Job, tensors_of_servers
from strategies.options import MAX_RANKS, Knobs, Unit

if TYPE_CHECKING:
    from bench.config.run import RunConfig


class Workers(Knobs):
    """The strategy and the ranks that train."""

    strategy: str = catalogue.LOCAL.name
    """How gradients become one update: local (one worker), independent (workers that never communicate: the upper
    bound), parameter_server, ring_allreduce (Horovod), mpi_ring (the same ring on mpi4py), ddp (PyTorch
    DistributedDataParallel), zero (a sharded optimizer on mpi4py), fsdp (PyTorch FSDP2), pipeline (the layers split
    among ranks), tensor_parallel (every layer split among ranks), or your own class as package.module:Class."""
    num_workers: Annotated[int, Unit("ranks")] = Field(1, ge=1, le=MAX_RANKS)
    """Ranks that train. Under a launcher: its world size less num_servers."""

    @field_validator("strategy")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return catalogue.full_name(value)
        except ValueError as error:
            raise ValueError(f"strategy: {error}") from None

    @property
    def kind(self) -> catalogue.Entry:
        """Return the strategy's entry in the catalogue."""
        return catalogue.find(self.strategy)


def default_num_servers(values: Mapping[str, object]) -> int:
    """Return the number of servers of a config that does not name one: 1 for dedicated servers, else 0."""
    try:
        served = catalogue.find(catalogue.full_name(str(values.get("strategy", catalogue.LOCAL.name)))).has_servers
    except ValueError:
        return 0  # an unknown strategy, which its own validator reports
    return int(served and values.get("placement", "dedicated") == "dedicated")


def check(config: RunConfig) -> Iterator[str]:
    """Yield errors in the numbers of workers and servers, and in the consistency model."""
    yield from _servers(config)
    yield from _sharding(config)
    yield from _consistency(config)
    if config.kind.single_process and config.num_workers != 1:
        yield f"num_workers: {config.strategy} is one worker; for several use {catalogue.INDEPENDENT.name}"


def _servers(config: RunConfig) -> Iterator[str]:
    name, workers, servers = config.strategy, config.num_workers, config.num_servers
    served = config.kind.has_servers
    if served and not servers and config.placement != "colocated":
        yield f"num_servers: {name} needs at least 1 server; give num_servers: 1"
    if not served and servers:
        yield f"num_servers: {name} has no servers; leave num_servers out"
    if served and servers and config.placement == "colocated":
        yield "placement: colocated servers are on the workers' ranks; leave num_servers out, or use mixed"
    if served and servers > workers and config.placement == "mixed":
        yield (
            f"num_servers: mixed has a use for at most as many servers as workers ({workers}), not {servers}; "
            "use placement: dedicated"
        )


def _sharding(config: RunConfig) -> Iterator[str]:
    if config.sharding != "tensors":
        return
    if not config.kind.has_servers:
        yield f"sharding: {config.strategy} has no servers that hold tensors; leave sharding out"
        return
    held = tensors_of_servers(config, Job(config.num_workers, config.gpt.tensors))
    without = sum(not tensors for tensors in held.values())
    if without:
        yield (
            f"sharding: {len(config.gpt.tensors)} whole tensors leave {without} of {len(held)} servers without any; "
            "use ranges, or fewer servers"
        )


def _consistency(config: RunConfig) -> Iterator[str]:
    consistency = config.consistency
    if consistency != "bsp" and not config.kind.has_servers:
        yield f"consistency: {consistency} needs a parameter_server; use bsp with {config.strategy}"
    if config.staleness and consistency != "ssp":
        yield f"staleness: only ssp has a bound; leave it out with consistency: {consistency}"
    if not config.synchronous and config.server_role == "sum":
        yield f"server_role: {consistency} has no sum of all workers to return; use update, or bsp"
    if not config.synchronous and config.needs_norm:
        yield (
            f"consistency: {consistency} updates each chunk as it arrives and never has a whole gradient; "
            "use bsp with clip_norm or precision: fp16"
        )
