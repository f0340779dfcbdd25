"""How much memory a worker and a server need, as limits of what can run; closed forms, about right."""

from __future__ import annotations

from bench.predict.cell import Cell
from bench.predict.push_pull import Servers
from strategies.catalogue import SHARDED
from strategies.options import NUMBER_FORMATS

STATE_BYTES = {"adamw": 8, "sgd": 4}  # per parameter, fp32
# Of a block's activations per token and number of the residual stream, in 16 bits (Korthikanti et al., "Reducing
# Activation Recomputation in Large Transformer Models", 2022, section 4.1), with an attention that keeps no scores.
ACTIVATION_BYTES = 34


def worker_bytes(cell: Cell) -> float:
    """Return weights, gradients, the optimizer's state where workers update, messages and activations."""
    config, shape = cell.config, cell.shape
    updates = not config.kind.has_servers or config.server_role == "sum" or config.sync_every > 1
    of_weights, of_state = _divided(cell)
    own = cell.num_parameters * (8 / of_weights + (STATE_BYTES[config.optimizer] / of_state if updates else 0))
    messages = 2 * cell.payload if config.num_workers + config.num_servers > 1 else 0
    itemsize = NUMBER_FORMATS[config.precision].nbytes
    tokens = config.batch_size // config.gradient_accumulation * shape.block_size
    parts = config.model_parallel_size if config.kind.splits else 1
    activations = tokens * shape.n_embd * shape.n_layer * ACTIVATION_BYTES * itemsize / 2 / parts
    logits = tokens * shape.vocab_size * (itemsize + 4)
    return own + messages + activations + logits + _served_bytes(cell, on_worker=True)


def _divided(cell: Cell) -> tuple[int, int]:
    """Return among how many ranks weights and gradients, and the optimizer's state, are divided."""
    config = cell.config
    if config.kind.splits:
        return config.model_parallel_size, config.model_parallel_size
    whole = 1 if config.kind.family != SHARDED else config.num_workers
    return whole if config.kind.gathers_weights else 1, whole


def server_bytes(cell: Cell) -> float | None:
    """Return the shard, its sums and state, and every worker's pushes; None without a server of its own."""
    return _served_bytes(cell, on_worker=False) if cell.config.num_servers else None


def _served_bytes(cell: Cell, on_worker: bool) -> float:
    config = cell.config
    if not config.kind.has_servers:
        return 0.0
    servers = Servers.of(cell)
    share = servers.on_worker if on_worker else servers.own
    shard = share * cell.num_parameters * (4 + 4 + STATE_BYTES[config.optimizer])
    return shard + share * cell.payload * (cell.senders + 1)
