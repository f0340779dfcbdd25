"""Calibrate a launch: compute on the first rank, then the hosts' and the links' costs between all of its ranks."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from typing import Any

from bench import processes
from bench.config import BadInput, RunConfig
from bench.durations import Calibration
from bench.intervals import Estimate
from bench.mpi import ALONE, RankInfo, tcp_settings
from bench.rank import group, transport
from bench.rank.calibrate import calibrate
from strategies import catalogue
from strategies.environment import mpi_environment, waiting_environment
from strategies.group import Group

DIGITS = 6


def calibrate_all(
    config: RunConfig, rank_info: RankInfo, link: str | None, check: Callable[[], None]
) -> Calibration | None:
    """Return the calibration on rank 0, None elsewhere; `check` is called once all ranks have joined. Collective.

    Its section `cluster` is what `bench.predict` reads. BadInput on every rank if data or device cannot be used, or
    the launcher cannot send messages by MPI.
    """
    if rank_info.launcher == "horovodrun":
        raise BadInput(
            "calibrate: horovodrun's ranks have no MPI; start them with mpirun, or measure without a launcher"
        )
    if rank_info.launcher != "none":
        processes.die_with_parent()
    os.environ.update(mpi_environment(os.environ) | waiting_environment(os.environ) | tcp_settings(config))
    group.set_deadline(config.timeout_s)
    try:
        joining = catalogue.MPI_RING if rank_info.starts_mpi else catalogue.LOCAL
        ranks = group.join([joining.name], rank_info, config)
        group.agreed(ranks, check)
        return _measure(config, rank_info, ranks, link)
    except BadInput:
        raise
    except Exception as error:
        group.end_all_ranks(rank_info, config, error)
    finally:
        group.clear_deadline()


def _measure(config: RunConfig, rank_info: RankInfo, ranks: Group, link: str | None) -> Calibration | None:
    found, problem = None, None
    if ranks.rank == 0:  # the others sleep, so that they take no core from it
        try:
            found = calibrate(config, ALONE if rank_info.launcher == "none" else rank_info)
        except BadInput as error:
            problem = str(error)
    if ranks.size > 1:
        transport.wait_quietly(ranks.comm)
    group.raise_together(ranks, problem)
    measured = transport.measure_host() if ranks.rank == 0 else {}
    table: dict[int, float] = {}
    if ranks.size > 1:
        transport.wait_quietly(ranks.comm)
        table = transport.ping_pong_table(ranks)
        measured |= transport.measure_links(ranks)
        measured |= transport.measure_fusion(ranks, config)
    num_nodes = len(set(ranks.gather(socket.gethostname())))
    if found is None:
        return None
    cluster = _section(measured, found, link, table, (ranks.size, num_nodes))
    return found.model_copy(update={"cluster": cluster})


def _section(
    measured: dict[str, Estimate], found: Calibration, link: str | None, table: dict[int, float], size: tuple[int, int]
) -> dict[str, Any]:
    """Return the section `cluster`: every measured number, its interval, and what was measured where."""
    ranks, nodes = size
    intervals = {name: (_short(each.low), _short(each.high)) for name, each in measured.items() if each.low == each.low}
    section: dict[str, Any] = {name: _short(each.value) for name, each in measured.items()}
    section |= {
        "compute_cv": _short(found.compute_cv), "intervals": intervals, "measured_nodes": (min(2, nodes), nodes),
        "source": f"psring calibrate on {found.measured_on}, {ranks} ranks on {nodes} nodes",
    }  # fmt: skip
    if "worker_message_cpu_s" in measured:
        section["message_cpu_s"] = section["worker_message_cpu_s"]
    if link is not None:
        section["link"] = link
    if table:
        section["ping_pong_s"] = {str(nbytes): _short(seconds) for nbytes, seconds in table.items()}
    return section


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else value


# What `describe` prints of the section `cluster`: field, words, unit, factor to that unit.
WORDS = (
    ("latency_s", "latency of a message", "us", 1e6),
    ("bytes_per_s", "goodput of a link, each direction", "MB/s", 1e-6),
    ("duplex_factor", "duplex factor (1 full, 2 half)", "", 1.0),
    ("add_s_per_byte", "adding a byte", "ns", 1e9),
    ("copy_s_per_byte", "copying a byte", "ns", 1e9),
    ("flood_s_per_message", "a message in a flood of them", "us", 1e6),
    ("worker_message_cpu_s", "CPU of a worker per message", "us", 1e6),
    ("worker_cpu_s_per_byte", "CPU of a worker per byte", "ns", 1e9),
    ("server_message_cpu_s", "CPU of a server per message", "us", 1e6),
    ("server_cpu_s_per_byte", "CPU of a server per byte", "ns", 1e9),
    ("cycle_s", "Horovod's wait beyond its cycle", "ms", 1e3),
)


def describe(found: Calibration) -> list[str]:
    """Return a calibration in lines: what was measured, its unit, and its interval."""
    cluster = found.cluster or {}
    intervals, totals = cluster.get("intervals", {}), found.intervals or {}
    lines = [f"  measured on {found.measured_on}: {cluster.get('source', '')}"]
    for name, seconds in (("forward", found.forward_s), ("backward", found.backward_s)):
        lines.append(_line(name, sum(seconds.values()), "ms", 1e3, totals.get(f"{name}_s")))
    lines.append(_line("optimizer", found.optimizer_s, "ms", 1e3, totals.get("optimizer_s")))
    lines.append(_line("variation of a step", found.compute_cv, "%", 100, None))
    for name, words, unit, factor in WORDS:
        if name in cluster:
            lines.append(_line(words, cluster[name], unit, factor, intervals.get(name)))
    if "bytes_per_s" not in cluster:
        lines.append(
            "  no link was measured: start it under mpirun with two ranks or more to measure latency and goodput"
        )
    return lines


def _line(words: str, value: float, unit: str, factor: float, interval: tuple[float, float] | None) -> str:
    within = f"  [{interval[0] * factor:.3g}, {interval[1] * factor:.3g}]" if interval else ""
    return f"  {words:36}{value * factor:>10.4g} {unit}{within}"
