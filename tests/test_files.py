"""A file is replaced whole or not at all, only a regular file is, and nothing outside a results folder is touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import files
from bench.config import BadInput, DiskFull


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("good")

    def fail() -> None:
        with files.replacing(path) as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(DiskFull, match="No space left"):
        fail()
    assert path.read_text() == "good"
    assert names(tmp_path) == {"kept"}


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with files.replacing(path) as one, files.replacing(path) as two:
        one.write(b"one")
        two.write(b"two")
    assert path.read_bytes() == b"one"  # the last that ends
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_only_a_regular_file_is_replaced(kind: str, tmp_path: Path) -> None:
    path, target = tmp_path / "path", tmp_path / "target"
    if kind == "link":
        target.write_text("theirs")
    if "link" in kind:
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    before = names(tmp_path)
    for act in (files.check_writable, lambda where: files.write_whole(where, "ours")):
        with pytest.raises(BadInput, match="only a regular file is replaced"):
            act(path)
    assert names(tmp_path) == before
    assert kind != "link" or target.read_text() == "theirs"


def test_a_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="no folder but a link"):
        files.own_folder(tmp_path, "figures")


def test_a_refused_folder_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("x")
    with pytest.raises(BadInput, match="not empty"):
        files.open_folder(tmp_path)
    assert names(tmp_path) == {"theirs"}


def test_text_that_utf8_cannot_hold_is_escaped(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "file", "q\udcff.bin")
    assert (tmp_path / "file").read_text() == "q\\udcff.bin"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "too many levels"), (b'{"a": ' * 100_000, "too many levels"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"), (b"\xff", "byte 0 is not UTF-8"), (b"", "Expecting value"),
        (b"9" * 5000, "digits"), (b"{}" + b" " * files.MAX_TEXT_BYTES, "more than"),
    ],
)  # fmt: skip
def test_json_that_means_nothing_or_two_things_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        files.read_json(tmp_path / "x.json")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: None])
def test_what_is_no_regular_file_is_not_waited_for(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(ValueError, match=r"no regular file|Is a directory|No such file"):
        files.read_text(tmp_path / "x")


def test_a_mark_of_utf8_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf[1]")
    assert files.read_json(tmp_path / "x") == [1]


def test_what_a_command_reads_and_what_was_measured_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "read").write_text("x")
    (tmp_path / "other").hardlink_to(tmp_path / "read")
    for name in ("read", "other", "runs.jsonl", "variants.jsonl"):
        with pytest.raises(BadInput, match="give another name"):
            files.check_writable(tmp_path / name, [None, tmp_path / "read"])
    with pytest.raises(BadInput, match="give another name"):
        files.check_writable(tmp_path / "new", [tmp_path / "new"])
    files.check_writable(tmp_path / "new", [tmp_path / "read"])
