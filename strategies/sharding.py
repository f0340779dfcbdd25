"""Which server holds how much of the parameters, in equal ranges or in whole tensors. No torch."""

from __future__ import annotations

from collections.abc import Sequence


def server_parts(placement: str, num_workers: int, num_servers: int) -> dict[int, int]:
    """Return how many equal parts of the parameters each serving rank should hold, so that links carry the same bytes.

    Workers are the first ranks. Mixed, n workers and k servers of their own: a worker's rank holds n-k parts, another
    server 2(n-1) (Jiang et al., "A Unified Architecture for Accelerating Distributed DNN Training", OSDI 2020).
    """
    n, k = num_workers, num_servers
    if placement == "colocated":
        return dict.fromkeys(range(n), 1)
    if placement == "dedicated" or k >= n:
        return dict.fromkeys(range(n, n + k), 1)
    return {rank: (n - k) if rank < n else 2 * (n - 1) for rank in range(n + k)}


def place_tensors(sizes: Sequence[int], parts: Sequence[int]) -> list[int]:
    """Return the server of each tensor: the largest first, each onto the server that is then the least loaded.

    Load is what a server holds over the `parts` that it should hold. This is TensorFlow's GreedyLoadBalancingStrategy
    in the order of Graham's LPT rule ("Bounds on Multiprocessing Timing Anomalies", 1969), which balances better than
    the order of definition. Ties go to the first tensor and the first server.
    """
    held, server_of = [0] * len(parts), [0] * len(sizes)
    for tensor in sorted(range(len(sizes)), key=lambda tensor: -sizes[tensor]):
        loads = [(one + sizes[tensor]) / part for one, part in zip(held, parts, strict=True)]
        server_of[tensor] = loads.index(min(loads))
        held[server_of[tensor]] += sizes[tensor]
    return server_of
