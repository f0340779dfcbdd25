"""Many workers and no communication: the ceiling that no strategy can pass."""

from __future__ import annotations

from strategies.base import WorkerOptimizer


class Independent(WorkerOptimizer):
    """Each worker trains a model of its own on its own share of the batches."""
