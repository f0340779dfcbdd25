"""Many workers without communication: the upper bound of throughput."""

from __future__ import annotations

from strategies.base import WorkerOptimizer


class Independent(WorkerOptimizer):
    """Each worker trains a model of its own on its share of the batches."""
