"""The kernel's byte counters of this emulated node's link."""

from __future__ import annotations

import os
from pathlib import Path

from bench.config import CLUSTER_VARIABLE
from bench.nodes.layout import INTERFACE


def on_node() -> bool:
    """Whether this process runs on an emulated node of `psring cluster`."""
    return CLUSTER_VARIABLE in os.environ


def bytes_on_link() -> tuple[int, int] | None:
    """Bytes (sent, received) since the link is up, frame headers included; None off an emulated node."""
    if not on_node():
        return None
    folder = Path("/sys/class/net", INTERFACE, "statistics")
    sent, received = (int((folder / name).read_text()) for name in ("tx_bytes", "rx_bytes"))
    return sent, received
