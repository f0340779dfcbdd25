"""Which bucket of a ring may use the link to the right neighbour now: the one that is needed first."""

from __future__ import annotations

import time

PATIENCE = 2.0  # times the usual hop
NEWEST = 0.1  # weight of the newest hop in the usual one


class Lane:
    """Holds blocks back while a bucket with a higher index is on its way round the ring.

    A bucket alone keeps all links busy: in each hop every rank sends one of its blocks. Together with others each of
    its 2(N-1) hops waits for a block of every other one, so that all end when the last one does. A bucket that does not
    move, because some rank has not reached it yet, holds nobody back: its next block is then overdue.
    """

    def __init__(self) -> None:
        self._sent_at: dict[int, float] = {}  # of each bucket that moves: when its last block was sent
        self._held_back: set[int] = set()
        self._hop_s = float("inf")  # a moving average: from sending a block to the arrival of the next one

    def sent(self, bucket: int) -> None:
        """Note that a block was sent: the bucket waits for its next one."""
        self._sent_at[bucket] = time.perf_counter()

    def arrived(self, bucket: int) -> None:
        """Note that the next block is here."""
        sent_at = self._sent_at.pop(bucket, None)
        if sent_at is not None:
            hop_s = time.perf_counter() - sent_at
            self._hop_s = hop_s if self._hop_s == float("inf") else (1 - NEWEST) * self._hop_s + NEWEST * hop_s

    def hold_back(self, bucket: int) -> None:
        """Note that a bucket has a block to send."""
        self._held_back.add(bucket)

    def free(self) -> list[int]:
        """Return the bucket that may send now, if one may; it then counts as sent."""
        first = max(self._held_back, default=-1)
        if first < 0 or first < max(self._sent_at, default=-1):
            return []
        self._held_back.remove(first)
        self.sent(first)
        return [first]

    def overdue(self) -> list[int]:
        """Return the bucket that may send because the one that it waits for does not move."""
        if not self._held_back or not self._sent_at:
            return self.free()
        first = max(self._sent_at)
        if time.perf_counter() - self._sent_at[first] > PATIENCE * self._hop_s:
            del self._sent_at[first]
        return self.free()
