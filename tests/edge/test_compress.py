"""Making a model small: what each step keeps, what a file holds, and one small compression from end to end."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from bench.cli import main
from bench.config import BadInput, make_config
from bench.edge import distil, export, libraries, onnx_file, prune, quantise, recipe
from bench.edge.compress import RELOAD_TOLERANCE
from bench.edge.recipe import INT4, INT8, INT8_DYNAMIC, Recipe
from bench.edge.results import LAUNCHES, VARIANTS, Launch, Variant, read
from bench.edge.runner import OnnxRunner, TorchRunner, load
from bench.rank import data, saved
from bench.rank.model import GPT
from bench.rank.weights import snapshot
from bench.shape import GPTShape

SHAPE = GPTShape(n_layer=4, n_head=4, n_embd=32, vocab_size=256, block_size=16)
TOKENS = torch.randint(256, (3, 10), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(SHAPE).eval()


def logits(model: GPT) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(TOKENS)


def test_a_recipe_is_the_parts_of_its_name_in_any_order() -> None:
    found = recipe.parse("original, onnx+distilled,distilled+onnx,int8_weight_only+pruned")
    assert [made.name for made in found] == ["original", "distilled+onnx", "pruned+int8_weight_only"]
    assert all(recipe.parse(made.name) == [made] for made in recipe.parse(recipe.DEFAULT))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("int8", "'int8' is no part"),
        ("distiled", "did you mean 'distilled'"),
        ("pruned+structured", "at most one"),
        ("int4_weight_only+onnx", "int8_dynamic"),
        ("", "no part"),
    ],
)
def test_a_recipe_that_cannot_be_made_is_refused(name: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        recipe.parse(f"original,{name}")


def test_distillation_is_between_divergence_and_cross_entropy() -> None:
    student, teacher = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)).unbind()
    targets = torch.zeros(3, 5, dtype=torch.int64)
    entropy = F.cross_entropy(student.flatten(0, 1), targets.flatten())
    assert torch.equal(distil.distillation_loss(student, teacher, targets, 2.0, 0.0), entropy)
    assert float(distil.distillation_loss(teacher, teacher, targets, 2.0, 1.0)) == pytest.approx(0, abs=1e-6)
    divergence = float(distil.distillation_loss(student, teacher, targets, 2.0, 1.0))
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    assert divergence == pytest.approx(4 * float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)
    both = float(distil.distillation_loss(student, teacher, targets, 2.0, 0.25))
    assert both == pytest.approx(0.25 * divergence + 0.75 * float(entropy), rel=1e-5)


def test_a_student_of_all_layers_is_its_teacher_and_a_smaller_one_has_its_first_and_last(model: GPT) -> None:
    assert torch.equal(logits(distil.student_of(model, 4)), logits(model))
    student = snapshot(distil.student_of(model, 2))
    assert torch.equal(student["blocks.1.fc.weight"], snapshot(model)["blocks.3.fc.weight"])


def test_distillation_brings_a_student_nearer_and_leaves_masked_weights_zero(model: GPT) -> None:
    config = make_config({**SHAPE.model_dump(), "steps": 12, "batch_size": 4, "data": "synthetic"}, "test")
    student = copy.deepcopy(model)
    prune.mask_smallest(student, 0.5)
    before = snapshot(model)
    losses = list(distil.distil(model, student, data.load(config), config, 2.0, 1.0))
    prune.settle(student)
    assert losses[-1] < losses[0]
    weights = [layer.weight for layer in prune.linears(student).values()]
    zero = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert zero == pytest.approx(0.5, abs=0.01)
    assert all(torch.equal(before[name], value) for name, value in snapshot(model).items())


def test_heads_and_neurons_that_do_nothing_are_those_removed(model: GPT) -> None:
    size = SHAPE.n_embd // SHAPE.n_head
    with torch.no_grad():
        for block in prune.blocks(model):
            block.attention.qkv.weight.view(3, 4, size, -1)[:, [0, 2]] = 0
            block.attention.proj.weight.view(-1, 4, size)[:, [0, 2]] = 0
            block.fc.weight[::2], block.proj.weight[:, ::2] = 0, 0
    smaller = prune.remove_smallest(model, 0.5)
    assert prune.widths(smaller) == [(2, 64)] * 4
    assert torch.allclose(logits(smaller), logits(model), atol=1e-6)


@given(st.lists(st.integers(-8, 7), min_size=2, max_size=40).filter(lambda values: len(values) % 2 == 0))
def test_four_bits_come_back_as_they_were(values: list[int]) -> None:
    tensor = torch.tensor(values, dtype=torch.int8)
    assert torch.equal(quantise.unpack(quantise.pack(tensor)), tensor)


@pytest.mark.parametrize("name", ["original", "pruned", "structured", INT8, INT8_DYNAMIC, INT4, f"structured+{INT4}"])
def test_a_file_gives_the_same_logits(name: str, model: GPT, tmp_path: Path) -> None:
    (made,) = recipe.parse(name)
    if made.quantised:
        pytest.importorskip("torchao")
    if made.pruned == "structured":
        model = prune.remove_smallest(model, 0.5)
    if made.pruned == "pruned":
        prune.mask_smallest(model, 0.5)
        prune.settle(model)
    before = logits(model)
    quantise.quantise(prune.linears(model) if made.quantised else {}, made.quantised)
    path = tmp_path / "m.safetensors"
    export.write(path, model, made, "stdlib")
    found, read_as = export.read(path)
    assert torch.equal(logits(found.model), logits(model))
    assert (read_as, found.data) == (made, "stdlib")
    assert torch.allclose(logits(model), before, atol={INT4: 0.1}.get(made.quantised, 0.01))
    with torch.no_grad():  # the KV cache of a smaller model is smaller, too
        caches = found.model.caches(3)
        steps = [found.model.next_logits(TOKENS[:, at : at + 1], caches) for at in range(10)]
    assert torch.allclose(torch.stack(steps, 1), logits(model), atol=2e-3)


def test_a_damaged_file_is_refused(model: GPT, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    export.write(path, model, Recipe(), None)
    content = path.read_bytes()
    for damaged in (b"", content[:100], content[:-8], content.replace(b"n_layer", b"x_layer")):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match="no model that psring compress wrote"):
            export.read(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda said, stored: said["shape"].update(n_embd=1 << 16, n_head=1), "its dimensions say"),
        (lambda said, stored: said["shape"].update(n_layer=10**8), "n_layer"),
        (lambda said, stored: said["shape"].update(n_head=5), "does not divide"),
        (lambda said, stored: said.update(widths=[[-1, -1]] * 4), "no model"),
        (lambda said, stored: said.pop("data"), "data"),
        (lambda said, stored: said.update(recipe="int8_weight_only"), "no model|not installed"),
        (lambda said, stored: stored.update({"ln_f.weight": torch.ones(32, dtype=torch.int32)}), "holds int32"),
        (lambda said, stored: stored.update({"ln_f.weight": torch.full((32,), torch.nan)}), "not finite"),
        (lambda said, stored: stored.update({"ln_f.weight": torch.ones(33)}), "no model"),
        (lambda said, stored: stored.pop("ln_f.weight"), "ln_f.weight is missing"),
    ],
)  # fmt: skip
def test_an_edited_file_is_refused(change: Callable[..., object], reason: str, model: GPT, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "m.safetensors"
    export.write(path, model, Recipe(), "stdlib")
    said, stored = json.loads(export.describe(model, Recipe(), "stdlib")), safetensors.load_file(path)
    change(said, stored)
    safetensors.save_file(stored, path, {"psring": json.dumps(said)})
    with pytest.raises(BadInput, match=reason):
        export.read(path)


@pytest.mark.parametrize("name", ["onnx", "structured+onnx", "int8_dynamic+onnx"])
def test_onnxruntime_computes_the_models_logits_with_and_without_the_cache(
    name: str, model: GPT, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    (made,) = recipe.parse(name)
    model = prune.remove_smallest(model, 0.5) if made.pruned else model
    onnx_file.write(tmp_path / "m.onnx", model, made, None)
    runner = load(tmp_path / "m.onnx", 1)
    assert isinstance(runner, OnnxRunner)
    tolerance = 0.05 if made.quantised else RELOAD_TOLERANCE
    assert torch.allclose(runner.logits(TOKENS), logits(model), atol=tolerance)
    reference = TorchRunner(model)
    with torch.no_grad():
        for each in (runner, reference):
            each.start(3)
        for begin, end in ((0, 7), (7, 8), (8, 9)):
            tokens = TOKENS[:, begin:end]
            assert torch.allclose(runner.next_logits(tokens), reference.next_logits(tokens), atol=tolerance)


def test_what_is_not_installed_is_said_on_one_line(
    model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: None if name == "torchao" else name)
    saved.write(tmp_path / "m.pt", snapshot(model), SHAPE, "synthetic")
    assert main(["compress", str(tmp_path / "m.pt"), "--out", str(tmp_path / "out"), "--variants", INT8]) == 2
    error = capsys.readouterr().err
    assert "torchao not installed; pip install 'psring[edge]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_from_a_trained_file_to_a_report(model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors")
    saved.write(tmp_path / "m.pt", snapshot(model), SHAPE, "synthetic")
    out = tmp_path / "out"
    few = ["--steps", "2", "--repeats", "2", "--eval-batches", "2", "--batch-size", "2"]
    arguments = ["compress", str(tmp_path / "m.pt"), "--variants", "distilled,structured"]
    assert main([*arguments, "--out", str(out), *few]) == 0, capsys.readouterr().err
    variants, launches = read(out, VARIANTS, Variant), read(out, LAUNCHES, Launch)
    assert [variant.name for variant in variants] == ["original", "distilled", "structured"]
    assert all(variant.status == "ok" for variant in variants)
    assert [variant.reload_error for variant in variants] == [0, 0, 0]
    assert sorted((line.repeat, line.variant) for line in launches) == sorted(
        (repeat, variant.name) for repeat in range(2) for variant in variants
    )
    before = (out / "report.md").read_text()
    assert main(["report", str(out)]) == 0
    assert (out / "report.md").read_text() == before
    assert main(["generate", str(out / "models" / "structured.safetensors"), "--max-tokens", "3"]) == 0
    capsys.readouterr()
    for wrong in ([*arguments, "--out", str(out)], [*arguments, "--out", str(tmp_path / "b"), "--student-layers", "9"]):
        assert main(wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "b").exists()
