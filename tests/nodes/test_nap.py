"""The nap shim is code that every rank runs: only what this user compiled is loaded, and the record says what was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.config import BadInput
from bench.nodes import cluster, layout, nap

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")


@needs_compiler
@pytest.mark.parametrize("planted", ["empty", "writable by others", "a link", "a folder"])
def test_a_file_that_is_not_ours_is_not_loaded(planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSRING_CACHE", str(tmp_path / "cache"))
    library = nap.build()
    assert library is not None
    assert nap.is_ours(library)
    good = library.read_bytes()
    library.unlink()
    if planted == "a link":
        (tmp_path / "theirs").write_bytes(good)
        library.symlink_to(tmp_path / "theirs")
    elif planted == "a folder":
        library.mkdir()
    else:
        library.write_bytes(good if planted == "writable by others" else b"")
        library.chmod(0o666 if planted == "writable by others" else 0o600)
    assert not nap.is_ours(library)
    again = nap.build()
    assert again is None if planted == "a folder" else again is not None and nap.is_ours(again)


@pytest.mark.parametrize("name", ["a b", "a:b"])
def test_a_path_at_which_the_loader_splits_is_not_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSRING_CACHE", str(tmp_path / name))
    assert nap.environment({}) == {}


def test_what_is_not_loaded_is_not_recorded_as_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/nowhere/psring-nap-0.so")
    assert not nap.is_loaded()


@pytest.mark.parametrize("state", ["", "{", "[]", '{"name": "x"}', "null"])
def test_a_state_that_is_half_written_is_named(state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "state_file", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(cluster, "STATE", tmp_path)
    (tmp_path / "half.json").write_text(state)
    with pytest.raises(BadInput, match="psring cluster down --name half") as found:
        layout.find("half")
    assert cluster.describe() == [str(found.value)]


@pytest.mark.parametrize("name", ["*", "../x", "", "a" * 21, "A", "x y"])
def test_a_name_is_checked_by_every_command(name: str) -> None:
    for act in (layout.find, cluster.down):
        with pytest.raises(BadInput, match="small letters and digits"):
            act(name)
