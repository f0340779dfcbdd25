"""One worker without communication: the baseline of speedup and scaling efficiency."""

from __future__ import annotations

from strategies.base import WorkerOptimizer
from strategies.group import Group
from strategies.options import Options


class Local(WorkerOptimizer):
    """Plain single-process training."""

    def __init__(self, group: Group, options: Options) -> None:
        if group.size != 1:
            raise ValueError(f"local is one worker, not {group.size} ranks")
        super().__init__(group, options)
