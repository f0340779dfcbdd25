"""Communication volume: one type for predicted and counted bytes and messages. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass
class Volume:
    """Bytes and messages that one rank sends and receives.

    None is unknown: messages where a library decides how many carry the bytes, bytes too where it did not run the
    algorithm whose bytes are known.
    """

    bytes_sent: float | None = 0
    bytes_received: float | None = 0
    messages_sent: float | None = 0
    messages_received: float | None = 0

    @staticmethod
    def unknown() -> Volume:
        """Return a volume of which nothing is known."""
        return Volume(None, None, None, None)

    def add(
        self,
        sent: float | None = 0,
        received: float | None = 0,
        messages_sent: float | None = 0,
        messages_received: float | None = 0,
    ) -> None:
        """Count bytes and messages that have just moved, in place; None makes the count unknown from now on."""
        self.bytes_sent = _plus(self.bytes_sent, sent)
        self.bytes_received = _plus(self.bytes_received, received)
        self.messages_sent = _plus(self.messages_sent, messages_sent)
        self.messages_received = _plus(self.messages_received, messages_received)

    def __sub__(self, earlier: Volume) -> Volume:
        """Return what has moved since an earlier count."""
        negative = [None if value is None else -value for value in vars(earlier).values()]
        return Volume(*map(_plus, vars(self).values(), negative))

    def __truediv__(self, number: float) -> Volume:
        """Return the share of each of `number` steps."""
        return Volume(*(None if value is None else value / number for value in vars(self).values()))


NAMES = tuple(field.name for field in fields(Volume))


def mean_volume(volumes: Sequence[Volume]) -> Volume | None:
    """Return the mean rank's volume, unknown where one rank's is; None without ranks."""
    if not volumes:
        return None
    total = Volume()
    for volume in volumes:
        total.add(*vars(volume).values())
    return total / len(volumes)


def _plus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
