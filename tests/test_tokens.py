"""Laws of files of tokens: what is not nanoGPT's .bin is recognised, and the command that is printed makes it one."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.arguments import parse
from bench.cli import main
from bench.config import BadInput, RunConfig
from bench.rank.data import load
from bench.tokens import check_bin

rng = np.random.default_rng(0)
SMALL = rng.integers(0, 200, 3000)
LARGE = np.minimum(rng.zipf(1.2, 30_000), 50256)  # as frequent as words are
LLMC = np.array([20240520, 1, len(SMALL), *[0] * 253], "<i4").tobytes()


def npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, SMALL)


KINDS: dict[str, tuple[str, Callable[[Path], object], np.ndarray]] = {
    "npy": ("a NumPy array", npy, SMALL),
    "llm.c": ("llm.c's header", lambda path: path.write_bytes(LLMC + SMALL.astype("<u2").tobytes()), SMALL),
    "text": ("plain text", lambda path: path.write_text("Größe, or not to be. " * 200), None),
    "u4": ("little-endian integers of 32 bits", lambda path: SMALL.astype("<u4").tofile(path), SMALL),
    "u4, large": ("little-endian integers of 32 bits", lambda path: LARGE.astype("<u4").tofile(path), LARGE),
    "i8": ("little-endian integers of 64 bits", lambda path: SMALL.astype("<i8").tofile(path), SMALL),
    "u2 big": ("big-endian integers of 16 bits", lambda path: SMALL.astype(">u2").tofile(path), SMALL),
    "u2 big, large": ("big-endian integers of 16 bits", lambda path: LARGE.astype(">u2").tofile(path), LARGE),
    "u4 big": ("big-endian integers of 32 bits", lambda path: SMALL.astype(">u4").tofile(path), SMALL),
    "i8 big": ("big-endian integers of 64 bits", lambda path: LARGE.astype(">i8").tofile(path), LARGE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_bin_is_named_and_mended_by_the_printed_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said, write, tokens = KINDS[kind]
    path = tmp_path / "a b.bin"
    write(path)
    with pytest.raises(BadInput) as refusal:
        check_bin(path)
    assert f"holds {said}" in str(refusal.value).replace("tokens behind ", "")
    command = shlex.split(str(refusal.value).rpartition("; ")[2])
    assert main(command[1:]) == 0
    expected = np.frombuffer(path.read_bytes(), "u1") if tokens is None else tokens
    assert np.array_equal(np.fromfile(parse(command[1:]).out, "<u2"), expected)


@pytest.mark.parametrize("tokens", [SMALL, LARGE, np.zeros(3000), np.arange(60_000), np.full(3000, 300), SMALL % 2])
def test_a_bin_is_read_as_it_is(tmp_path: Path, tokens: np.ndarray) -> None:
    tokens.astype("<u2").tofile(tmp_path / "x.bin")
    found = load(RunConfig(data=str(tmp_path / "x.bin"), vocab_size=1 << 16))
    assert np.array_equal(np.concatenate([found.train, found.held_out]), tokens)


def test_big_endian_tokens_outside_the_vocabulary_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    (rng.integers(0, 3, 3000) + 254).astype(">u2").tofile(path)
    with pytest.raises(BadInput, match=r"big-endian: psring data prepare .*--dtype uint16-be"):
        load(RunConfig(data=str(path), vocab_size=257))


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"\x93NUMPY garbage"), "cannot be read"),
        (lambda path: np.save(path, np.ones(8)), "type float64, not integers"),
        (lambda path: np.save(path, np.array([1, 70_000])), "token 70000"),
        (lambda path: np.save(path, np.array([1, -1])), "token -1"),
    ],
)
def test_what_cannot_become_tokens_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path], object], said: str
) -> None:
    path = tmp_path / "x.npy"
    write(path)
    assert main(["data", "prepare", str(path), "--out", str(tmp_path / "x.bin")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x.bin").exists()


def test_a_container_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x1f\x8b" + rng.bytes(1000))
    with pytest.raises(BadInput, match=r"the format gzip, .*; unpack it first"):
        check_bin(tmp_path / "x.bin")
