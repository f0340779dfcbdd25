"""Laws of host files: every launcher gets the same hosts and slots; what cannot be reached is named before a start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from bench.config import BadInput, RunConfig
from bench.hosts import check_hosts, make_hostfile, read_hostfile


def on(path: Path, launcher: str = "mpirun", num_workers: int = 2, **values: object) -> RunConfig:
    given = {"strategy": "ring_allreduce", "num_workers": num_workers, "launcher": launcher, "hostfile": str(path)}
    return RunConfig.model_validate({**given, **values})


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "hosts"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a slots=2\nb slots=3\n", [("a", 2, 1), ("b", 3, 2)]),
        ("a slots=2\r\nb:3\r\n", [("a", 2, 1), ("b", 3, 2)]),
        ("\n  # all of it\na slots = 2 # half\n\n", [("a", 2, 3)]),
        ("a\nb", [("a", 1, 1), ("b", 1, 2)]),
        ("a slots=2 max_slots=4", [("a", 2, 1)]),
        ("\ufeffnode-1.example.org:16", [("node-1.example.org", 16, 1)]),
        ("10.0.0.1 slots=4", [("10.0.0.1", 4, 1)]),
    ],
)
def test_every_usual_form_is_read(tmp_path: Path, content: str, expected: list[tuple[str, int, int]]) -> None:
    found = read_hostfile(write(tmp_path, content))
    assert [(host.name, host.slots, host.line) for host in found] == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no host"),
        ("# nothing\n", "has no host"),
        ("a slots=1\nb slot=1", "line 2: 'b slot=1' is not understood"),
        ("a slots=0", "line 1: 0 slots"),
        ("a slots=-1", "line 1: .* is not understood"),
        ("a slots=99999", "99999 slots"),
        ("a b", "is not understood"),
        ("-x slots=2", "is not understood"),
        ("a;touch x", "is not understood"),
        ("$(touch x):2", "is not understood"),
        ("a\0b", "is not understood"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(BadInput, match=f"^hostfile: {tmp_path}/hosts.*{said}") as refusal:
        read_hostfile(write(tmp_path, content))
    assert str(refusal.value).isprintable()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="hosts cannot be read: No such file"):
        check_hosts(on(tmp_path / "hosts"))


def test_each_launcher_gets_its_own_form(tmp_path: Path) -> None:
    path = write(tmp_path, "a:2\r\nb\n\nc slots=4\na")
    assert make_hostfile(on(path)) == "a slots=3\nb slots=1\nc slots=4\n"
    assert make_hostfile(on(path), mpich=True) == "a:3\nb:1\nc:4\n"


@pytest.mark.parametrize("num_workers", [2, 3, 5, 7])
def test_horovodrun_gets_as_many_slots_as_ranks(tmp_path: Path, num_workers: int) -> None:
    path = write(tmp_path, "localhost slots=2\n127.0.0.1\nlocalhost slots=4")
    config = on(path, "horovodrun", num_workers)
    check_hosts(config)
    path.write_text(make_hostfile(config))
    assert sum(host.slots for host in read_hostfile(path)) == num_workers


def test_what_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = write(tmp_path, "localhost slots=2\n")
    with pytest.raises(BadInput, match="has 2 slots, and horovodrun needs one for each of 3"):
        check_hosts(on(here, "horovodrun", 3))
    for interface in ("eth99", "198.51.100.7/32"):
        with pytest.raises(BadInput, match=f"this machine has no .*{interface}"):
            check_hosts(on(here, network_interface=interface))
    check_hosts(on(here, network_interface="lo"))
    check_hosts(on(here, network_interface="127.0.0.0/8"))
    monkeypatch.setattr(socket, "gethostname", lambda: "nowhere.invalid")
    with pytest.raises(BadInput, match=r"this machine by its name, and: the name 'nowhere\.invalid' has no address"):
        check_hosts(on(here, "horovodrun"))
    here.write_text("localhost\nnowhere.invalid slots=2\n")
    with pytest.raises(BadInput, match=r"hosts, line 2: the name 'nowhere\.invalid' has no address"):
        check_hosts(on(here))


@pytest.mark.parametrize("word", ["eth0,x;touch y", "-x", "$(x)", "a b", "fe80::%$(x)/64", "10.0.0.0/99", "a" * 16])
def test_no_command_hides_in_an_interface(word: str) -> None:
    with pytest.raises(ValueError, match="is neither an interface nor a network"):
        RunConfig(network_interface=word)


def test_horovodrun_takes_no_network() -> None:
    with pytest.raises(ValueError, match="horovodrun takes an interface"):
        RunConfig(strategy="ring_allreduce", launcher="horovodrun", num_workers=2, network_interface="10.0.0.0/24")
