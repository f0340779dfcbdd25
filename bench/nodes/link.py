"""What the kernel has counted on this emulated node's one link."""

from __future__ import annotations

import os
from pathlib import Path

from bench.config import CLUSTER_VARIABLE
from bench.nodes.layout import INTERFACE


def on_node() -> bool:
    """Whether this process runs on a node of `psring cluster`."""
    return CLUSTER_VARIABLE in os.environ


def bytes_on_link() -> tuple[int, int] | None:
    """Bytes (sent, received) since the node is up, headers included; None where this is no emulated node."""
    if not on_node():
        return None
    folder = Path("/sys/class/net", INTERFACE, "statistics")
    sent, received = (int((folder / name).read_text()) for name in ("tx_bytes", "rx_bytes"))
    return sent, received
