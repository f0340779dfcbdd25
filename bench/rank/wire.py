"""Bytes on the wire, as the kernel counts them: on an emulated node's link, elsewhere on this process's TCP sockets.

Neither needs root. Sockets count the payload of TCP, retransmissions included, without the headers of TCP, IP and
Ethernet, which an interface counts too. Connections over loopback are counted alike.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from bench.nodes.link import bytes_on_link, on_node
from strategies.volume import Volume

SO_COOKIE = 57  # a number that the kernel gives to one socket and to no later one
# Offsets in Linux's struct tcp_info (include/uapi/linux/tcp.h); bytes_sent is there from Linux 4.19 on.
RECEIVED_AT, SENT_AT, RETRANSMITTED_AT = 128, 200, 208
TCP_INFO_BYTES = 256
_libc = ctypes.CDLL(None, use_errno=True)


class Meter(Protocol):
    """Counts this rank's bytes on the wire since it was created."""

    by: str  # "interface" or "sockets"
    num_closed: int  # connections that have closed since; what they moved after the last reading is not known
    retransmitted: int  # bytes among those sent, as of the last reading

    def moved(self) -> Volume:
        """Return the bytes so far; messages are unknown, and so is everything where the kernel does not count."""
        ...


@dataclass(frozen=True)
class Wire:
    """What one rank moved on the wire in a run, and how that was counted."""

    moved: Volume = field(default_factory=Volume.unknown)
    by: str = ""
    num_closed: int = 0
    retransmitted: int = 0

    @staticmethod
    def read(meter: Meter) -> Wire:
        """Return what a meter has counted."""
        return Wire(meter.moved(), meter.by, meter.num_closed, meter.retransmitted)


class Counts(NamedTuple):
    """Bytes of one socket, since it was opened or between two readings."""

    sent: int = 0
    received: int = 0
    retransmitted: int = 0

    def since(self, before: Counts) -> Counts:
        """Return what was added since an earlier reading."""
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


class InterfaceMeter:
    """Counts all bytes on this emulated node's link, frame headers included."""

    by = "interface"
    num_closed = retransmitted = 0

    def __init__(self) -> None:
        self._before = self._read()

    def moved(self) -> Volume:
        """Return the bytes on the link since the meter was created."""
        return self._read() - self._before

    @staticmethod
    def _read() -> Volume:
        sent, received = bytes_on_link() or (None, None)
        return Volume(sent, received, None, None)


class SocketMeter:
    """Counts the bytes on all TCP sockets of this process, whichever library opened them.

    A connection that opens later is counted from its first byte, one that closes up to the last reading.
    """

    by = "sockets"

    def __init__(self) -> None:
        self._known = self._before = tcp_sockets()
        self._closed: list[Counts] = []
        self._counts = _kernel_counts()
        self.num_closed = self.retransmitted = 0

    def moved(self) -> Volume:
        """Return the bytes on all sockets since the meter was created."""
        if not self._counts:
            return Volume.unknown()
        now = tcp_sockets()
        self._closed += [self._increase(cookie, self._known[cookie]) for cookie in self._known.keys() - now.keys()]
        self._known, self.num_closed = now, len(self._closed)
        increases = [*self._closed, *(self._increase(cookie, counts) for cookie, counts in now.items())]
        total = Counts(*map(sum, zip(*increases, strict=True)))
        self.retransmitted = total.retransmitted
        return Volume(total.sent, total.received, None, None)

    def _increase(self, cookie: int, counts: Counts) -> Counts:
        return counts.since(self._before.get(cookie, Counts()))


def open_meter() -> Meter:
    """Return the meter that fits where this rank runs, counting from now on."""
    return InterfaceMeter() if on_node() else SocketMeter()


def tcp_sockets() -> dict[int, Counts]:
    """Return the bytes of every TCP socket of this process, by the kernel's cookie of the socket."""
    found = {}
    info, cookie = ctypes.create_string_buffer(TCP_INFO_BYTES), ctypes.c_uint64()
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        # Shorter where it is no TCP socket, or the kernel is older.
        if _option(descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, info) < RETRANSMITTED_AT + 8:
            continue
        if _option(descriptor, socket.SOL_SOCKET, SO_COOKIE, cookie) == 8:
            received, sent = _uint64_at(info, RECEIVED_AT), _uint64_at(info, SENT_AT)
            found[cookie.value] = Counts(sent, received, _uint64_at(info, RETRANSMITTED_AT))
    return found


def _uint64_at(data: ctypes.Array[ctypes.c_char], offset: int) -> int:
    """Return the number at an offset, in this machine's byte order."""
    return int(struct.unpack_from("Q", data, offset)[0])


def _kernel_counts() -> bool:
    """Return whether this kernel counts the bytes of a TCP socket."""
    with socket.socket():  # at least this one is there to be counted
        return bool(tcp_sockets())


def _option(descriptor: int, level: int, name: int, value: ctypes.Array[ctypes.c_char] | ctypes.c_uint64) -> int:
    """Write a socket's option to `value`; return its length, 0 if the descriptor is no socket that has it.

    Through C's getsockopt, because Python's needs a duplicate of a descriptor that belongs to another library.
    """
    length = ctypes.c_uint32(ctypes.sizeof(value))
    failed = _libc.getsockopt(descriptor, level, name, ctypes.byref(value), ctypes.byref(length))
    return 0 if failed else length.value
