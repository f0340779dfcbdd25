"""A file of weights is a plain state dict, says what it takes to use it, and anything else is refused on one line."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cli import main
from bench.config import BadInput
from bench.rank import saved
from bench.rank.model import GPT
from bench.rank.weights import snapshot
from bench.shape import PRESETS, GPTShape

SHAPE = GPTShape(n_layer=2, n_head=4, n_embd=16, vocab_size=64, block_size=8)


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return snapshot(GPT(SHAPE))


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    saved.write(tmp_path / "m.pt", weights(), SHAPE, "stdlib")
    found = saved.read(tmp_path / "m.pt")
    assert found.model.shape == SHAPE
    assert found.data == "stdlib"
    assert all(torch.equal(value, weights()[name]) for name, value in snapshot(found.model).items())


def test_it_is_a_state_dict_for_everybody_else(tmp_path: Path) -> None:
    saved.write(tmp_path / "m.pt", weights(), SHAPE, "stdlib")
    model = GPT(SHAPE)
    model.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
    torch.testing.assert_close(snapshot(model), weights(), rtol=0, atol=0)


def test_without_metadata_the_number_of_heads_is_asked_for(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "m.pt")
    with pytest.raises(BadInput, match="--n-head"):
        saved.read(tmp_path / "m.pt")
    assert saved.read(tmp_path / "m.pt", n_head=4).model.shape == SHAPE
    torch.save(snapshot(GPT(PRESETS["gpt-nano"])), tmp_path / "nano.pt")
    assert saved.read(tmp_path / "nano.pt").model.shape == PRESETS["gpt-nano"]


def changed(**values: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in {**weights(), **values}.items() if value is not None}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (changed(**{"wte.weight": None}), "wte.weight"),
        (changed(**{"blocks.1.fc.weight": torch.zeros(3, 16)}), "blocks.1.fc.weight"),
        (changed(**{"blocks.0.fc.bias": None}), "blocks.0.fc.bias"),
        (changed(extra=torch.zeros(1)), "extra"),
        (changed(**{"ln_f.bias": torch.full((16,), torch.nan)}), "not finite"),
        *[
            (changed(**{"ln_f.weight": torch.ones(16).to(dtype)}), f"ln_f.weight holds {name}")
            for dtype, name in (
                (torch.int64, "int64"),
                (torch.bool, "bool"),
                (torch.complex64, "complex64"),
                (torch.float8_e4m3fn, "float8"),
            )
        ],
        (changed(**{"ln_f.weight": torch.ones(16).to_sparse()}), "sparse"),
        (changed(**{"ln_f.weight": torch.ones(16, device="meta")}), "on meta"),
        (changed(**{"ln_f.weight": torch.full((16,), 1e300, dtype=torch.float64)}), "not finite"),
        ({1: torch.zeros(2)}, "no state dict"),
        (torch.zeros(2), "no state dict"),
        ([1, 2], "no state dict"),
        ({"epoch": 3}, "no state dict"),
    ],
)
def test_another_model_is_refused_by_name(content: object, reason: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(BadInput, match=reason):
        saved.read(tmp_path / "m.pt", n_head=4)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"n_layer": 10**9}, "n_layer"), ({"n_layer": -1}, "n_layer"), ({"n_layer": "2"}, "n_layer"),
        ({"n_head": 0}, "n_head"), ({"n_head": 3}, "does not divide"), ({"n_layer": 3}, "blocks.2."),
        ({"n_embd": 1 << 40}, "n_embd"), ({"vocab_size": 65}, "wte.weight"), ({"depth": 1}, "depth"),
    ],
)  # fmt: skip
def test_dimensions_that_are_not_those_of_the_weights_are_refused(
    said: dict[str, object], reason: str, tmp_path: Path
) -> None:
    state = OrderedDict(weights())
    about = {"": {saved.KEY: {"shape": {**SHAPE.model_dump(), **said}, "data": 5}}}
    state._metadata = about  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(BadInput, match=reason):
        saved.read(tmp_path / "m.pt")


@pytest.mark.parametrize("about", ["x", {"": "x"}, {"": {saved.KEY: "x"}}, {"": {saved.KEY: {"data": 5}}}])
def test_other_metadata_say_nothing(about: object, tmp_path: Path) -> None:
    state = OrderedDict(weights())
    state._metadata = about  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "m.pt")
    assert saved.read(tmp_path / "m.pt", n_head=4).data is None


def test_heads_that_the_file_says_are_not_given_again(tmp_path: Path) -> None:
    saved.write(tmp_path / "m.pt", weights(), SHAPE, "stdlib")
    with pytest.raises(BadInput, match="leave --n-head out"):
        saved.read(tmp_path / "m.pt", n_head=2)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut", bytes(range(256)), pickle.dumps({"a": 1})])
def test_a_file_that_holds_no_weights_is_refused_on_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    assert main(["generate", str(tmp_path / "m.pt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_writes_what_generate_reads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "16", "--batch-size", "2"]
    path = str(tmp_path / "m.pt")
    assert main(["run", *tiny, "--steps", "2", "--save-parameters", path]) == 0
    capfd.readouterr()
    assert main(["generate", path, "--max-tokens", "20", "--prompt", "ab"]) == 0
    first = capfd.readouterr().out
    assert first.startswith("ab")
    assert main(["generate", path, "--max-tokens", "20", "--prompt", "ab"]) == 0
    assert capfd.readouterr().out == first
    for wrong in (["--top-k", "0"], ["--temperature", "-1"], ["--prompt", ""], ["--seed", "x"]):
        assert main(["generate", path, *wrong]) == 2
        assert capfd.readouterr().err.count("\n") == 1
