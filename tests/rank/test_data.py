"""Laws of the data: a batch is a pure function; the workers' batches concatenated are one process's batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.config import BadInput, RunConfig
from bench.rank.data import load, prepare, standard_library


def config(**values: object) -> RunConfig:
    return RunConfig.model_validate({"strategy": "independent", "block_size": 16, "data": "synthetic", **values})


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5])
def test_workers_batches_concatenated_are_one_process_batch(num_workers: int) -> None:
    many = config(num_workers=num_workers, batch_size=4)
    one = config(num_workers=1, batch_size=4 * num_workers)
    corpus = load(many)
    for step in (0, 7):
        parts = [corpus.batch(many, worker, step) for worker in range(num_workers)]
        whole = corpus.batch(one, 0, step)
        for side in (0, 1):
            assert torch.equal(torch.cat([part[side] for part in parts]), whole[side])


def test_a_batch_is_a_pure_function_of_seed_worker_and_step() -> None:
    run = config(num_workers=2)
    first, again = load(run), load(run)
    again.batch(run, 1, 99)  # whatever was asked before
    assert torch.equal(first.batch(run, 1, 3)[0], again.batch(run, 1, 3)[0])
    others = [first.batch(run, 0, 3), first.batch(run, 1, 4), first.batch(config(num_workers=2, seed=2), 1, 3)]
    assert all(not torch.equal(first.batch(run, 1, 3)[0], other[0]) for other in others)


def test_targets_are_the_next_tokens() -> None:
    run = config()
    tokens, targets = load(run).batch(run, 0, 0)
    assert tokens.shape == targets.shape == (run.batch_size, 16)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_held_out_text_is_never_trained_on(tmp_path: Path) -> None:
    np.arange(1000, dtype="<u2").tofile(tmp_path / "count.bin")  # every token says where it stands
    run = config(data=str(tmp_path / "count.bin"), vocab_size=1000, batch_size=64)
    corpus = load(run)
    trained = torch.cat([torch.cat(corpus.batch(run, 0, step)) for step in range(30)])
    held_out = torch.cat([torch.cat(corpus.held_out_batch(run, number)) for number in range(10)])
    assert int(trained.max()) < 900 <= int(held_out.min())
    assert int(trained.max()) == 899  # and nothing else is left out
    assert int(held_out.max()) == 999


def test_the_default_is_real_text() -> None:
    text = standard_library().tobytes()
    assert len(text) > 5_000_000
    assert text.count(b"def ") > 10_000


def test_prepare_writes_what_load_reads(tmp_path: Path) -> None:
    text = bytes(range(256)) * 4
    (tmp_path / "text").write_bytes(text)
    assert prepare(tmp_path / "text", tmp_path / "text.bin") == len(text)
    corpus = load(config(data=str(tmp_path / "text.bin")))
    assert np.concatenate([corpus.train, corpus.held_out]).astype(np.uint8).tobytes() == text


def bad_bin(path: Path, kind: str) -> str:
    file = path / "bad.bin"
    if kind == "truncated":
        file.write_bytes(b"\1\0" * 1000 + b"\1")
    elif kind == "empty":
        file.touch()
    elif kind == "vocabulary":
        np.full(1000, 300, dtype="<u2").tofile(file)
    elif kind == "short":
        np.zeros(20, dtype="<u2").tofile(file)
    return str(file)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "there is no file"),
        ("truncated", "2001 bytes"),
        ("empty", "0 bytes"),
        ("vocabulary", "token 300, outside vocab_size: 256"),
        ("short", "too few"),
    ],
)
def test_a_bad_bin_is_refused_in_one_line(tmp_path: Path, kind: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as refusal:
        load(config(data=bad_bin(tmp_path, kind)))
    assert "\n" not in str(refusal.value)
