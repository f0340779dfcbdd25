"""Communication volume of one step: what was predicted, what was counted, and whether they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.config import RunConfig
from bench.records import Ledger
from strategies.closed_forms import Job, Prediction
from strategies.volume import Volume

UNKNOWN = Volume(None, None, None, None)
# At most, of a message: Open MPI's, TCP's, IP's, Ethernet's and the acknowledgement's (140 to 200 were seen).
HEADER_BYTES = 200
DIRECTIONS = [f"{way}_per_{role}_per_step" for role in ("worker", "server") for way in ("bytes_sent", "bytes_received")]


def predict(config: RunConfig) -> tuple[Volume, Volume | None]:
    """Return the closed form for the mean worker and, if there are any, the mean server; unknown without one."""
    found = _closed_form(config)
    return (found.worker, found.server) if found else (UNKNOWN, None)


def _closed_form(config: RunConfig) -> Prediction | None:
    form = config.kind.closed_form
    job = Job(config.num_workers, config.gpt.num_parameters, 4 + 12 * config.gpt.n_layer)
    return form(config, job) if form else None


def make_ledger(
    config: RunConfig, workers: Sequence[Volume], servers: Sequence[Volume], wire: Mapping[str, float | None]
) -> Ledger:
    """Put the prediction beside the mean of what workers and servers counted, and what the kernel did."""
    worker, server = predict(config)
    values: dict[str, float | None] = dict(wire)
    for name in ("bytes_sent", "bytes_received", "messages_sent", "messages_received"):
        values[f"{name}_per_worker_per_step"] = _mean([getattr(volume, name) for volume in workers])
        values[f"{name}_per_worker_per_step_predicted"] = getattr(worker, name)
        if server is not None:
            values[f"{name}_per_server_per_step"] = _mean([getattr(volume, name) for volume in servers])
            values[f"{name}_per_server_per_step_predicted"] = getattr(server, name)
    ledger = Ledger.model_validate(values)
    return ledger.model_copy(update={"ledger_agrees": agrees(config, ledger)})


def wire_ratios(ledger: Ledger) -> dict[str, float]:
    """Return wire over counted bytes, by direction and role, where both are known and something was sent."""
    values = ledger.model_dump()
    known = [name for name in DIRECTIONS if values[name] and values[f"{name}_wire"]]
    return {name: values[f"{name}_wire"] / values[name] for name in known}


def header_shares(ledger: Ledger) -> dict[str, float]:
    """Return what headers of messages may add to the wire over counted bytes, by direction and role.

    Nothing where messages are not counted. Only of small messages, which compression makes, is it much.
    """
    values = ledger.model_dump()
    messages = {name: values[name.replace("bytes", "messages")] for name in DIRECTIONS}
    return {name: HEADER_BYTES * (messages[name] or 0) / values[name] for name in DIRECTIONS if values[name]}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def padding_bytes(config: RunConfig) -> float:
    """How far a correct count may lie from the closed form, bytes."""
    found = _closed_form(config)
    return found.tolerance_bytes if found else 0.0


def agrees(config: RunConfig, ledger: Ledger) -> bool | None:
    """Whether counted equals predicted: within the padding; None: not counted."""
    values = ledger.model_dump()
    compared = None
    for name, counted in values.items():
        predicted = values.get(f"{name}_predicted")
        if counted is None or predicted is None:
            continue
        rounding = 1e-12 * predicted  # of the means, which are floats
        if abs(counted - predicted) > padding_bytes(config) + rounding:
            return False
        compared = True
    return compared
