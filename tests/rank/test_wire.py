"""Laws of the wire's bytes: the kernel's counts of this process's sockets are what was sent, whoever sent it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bench.config import RunConfig
from bench.ledger import Ledger, RoleVolumes, WireSource, make_ledger
from bench.rank.train import with_tail
from bench.rank.wire import SocketMeter, Wire
from bench.records import StepRecord
from strategies.volume import Volume


def connect() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over loopback."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        return socket.create_connection(listening.getsockname()), listening.accept()[0]


def send(source: socket.socket, target: socket.socket, nbytes: int) -> None:
    source.sendall(bytes(nbytes))
    while nbytes:
        nbytes -= len(target.recv(nbytes))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with ExitStack() as stack:
        one, other = connect()
        stack.enter_context(one)
        stack.enter_context(other)
        yield one, other


def test_sockets_count_what_is_sent_and_received_since_the_meter_was_made(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    send(*pair, 7000)
    meter = SocketMeter()
    assert meter.moved() == Volume(0, 0, None, None)
    send(*pair, 100_000)
    send(*reversed(pair), 23)  # both ends are this process's, so that every byte is sent and received here
    found = Wire.read(meter)
    assert found == Wire(Volume(100_023, 100_023, None, None), "sockets")


def test_connections_that_open_or_close_meanwhile_are_counted_to_the_last_reading(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    send(*pair, 50)
    meter = SocketMeter()
    later = connect()
    send(*later, 1000)
    send(*pair, 300)
    assert meter.moved().bytes_sent == 1300
    for end in later:
        end.close()
    send(*pair, 7)
    assert meter.moved() == Volume(1307, 1307, None, None)
    assert meter.num_closed == 2
    assert meter.moved().bytes_sent == 1307  # and they are counted once


CONFIG = RunConfig(strategy="ring_allreduce", num_workers=3)


def ledger_of(carried: float, **source: object) -> Ledger:
    """The ledger of a ring whose sockets carried a share of what was counted."""
    volumes = RoleVolumes(Volume(1000, 1000, None, None), wire=Volume(1000 * carried, 1000, None, None))
    return make_ledger(CONFIG, volumes, RoleVolumes(), WireSource("sockets", **source))


def test_bytes_that_passed_shared_memory_are_blank_and_say_so() -> None:
    whole, part = ledger_of(1.02, share_host=True), ledger_of(0.5, share_host=True)
    assert (whole.wire_counted_by, whole.wire_remark, whole.worker.wire.bytes_sent) == ("sockets", None, 1020)
    assert (part.wire_counted_by, part.worker.wire) == (None, Volume.unknown())
    assert part.wire_remark == "TCP sockets carried 50.00% of the counted bytes: messages passed shared memory"


def test_a_disagreement_that_shared_memory_cannot_explain_keeps_its_number() -> None:
    found = ledger_of(0.5)
    assert (found.wire_counted_by, found.worker.wire.bytes_sent) == ("sockets", 500)
    assert "wrong count" in (found.wire_remark or "")


def test_closed_connections_and_retransmissions_are_remarked() -> None:
    assert ledger_of(1.1, num_closed=2, retransmitted=0.05).wire_remark == (
        "2 connections closed during the run: their last bytes are missing; 5.0% of the bytes sent are retransmissions"
    )


def test_where_counts_are_unknown_only_separate_hosts_show_what_sockets_saw() -> None:
    unknown = RoleVolumes(wire=Volume(5, 5, None, None))
    for share_host, seen in ((True, None), (False, 5)):
        found = make_ledger(CONFIG, unknown, RoleVolumes(), WireSource("sockets", share_host=share_host))
        assert found.worker.wire.bytes_sent == seen
        assert found.bytes_counted_by is None


@pytest.mark.parametrize(
    ("strategy", "by"), [("ring_allreduce", "inferred"), ("ddp", "inferred"), ("mpi_ring", "counted")]
)
def test_a_formula_is_no_count(strategy: str, by: str) -> None:
    config = RunConfig(strategy=strategy, num_workers=3)
    assert make_ledger(config, RoleVolumes(Volume(8, 8, None, None)), RoleVolumes()).bytes_counted_by == by


def test_a_runs_tail_belongs_to_its_last_step() -> None:
    times = dict.fromkeys(
        ("step_s", "data_s", "forward_s", "backward_s", "exposed_communication_s", "optimizer_s", "communication_s"),
        0.0,
    )
    steps = [
        StepRecord(worker=0, step=i, warmup=False, loss=1.0, **times, moved=Volume(10, 4, 1, None)) for i in range(3)
    ]
    first, second, last = with_tail(steps, Volume(33, 12, 3, None), Volume.unknown())
    assert (first, second) == tuple(steps[:2])
    assert last.moved == Volume(13, 4, 1, None)
    assert last.wire == Volume.unknown()
    assert with_tail([], Volume(), Volume()) == []
