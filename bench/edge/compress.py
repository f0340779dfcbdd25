"""Make the variants of a trained GPT, check and evaluate each, then time them in repeats that interleave all."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import environment, files
from bench.config import BadInput, RunConfig, make_config
from bench.edge import distil, export, measure, onnx_file, prune, results
from bench.edge.libraries import missing
from bench.edge.measure import Tokens
from bench.edge.quantise import quantise
from bench.edge.recipe import Recipe
from bench.edge.results import Launch, Variant
from bench.rank import data
from bench.rank.data import Corpus
from bench.rank.model import GPT
from bench.rank.saved import Saved

RELOAD_TOLERANCE = 1e-4  # of logits; onnxruntime sums in another order
SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class Options:
    """What the variants are made and measured with; the flags of `psring compress` say what each is."""

    data: str
    steps: int = 500
    temperature: float = 2.0
    distillation_share: float = 0.5
    student_layers: int | None = None
    sparsity: float = 0.5
    learning_rate: float = 1e-3
    batch_size: int = 8
    eval_batches: int = 16
    repeats: int = 6
    num_threads: int = 1
    seed: int = 1337


class Maker:
    """Makes variants of one trained model; a student and a pruned model are trained once, whatever is made of them."""

    def __init__(self, trained: Saved, options: Options, say: Callable[[str], None]) -> None:
        self.teacher, self.options, self._say = trained.model, options, say
        self.config = _config(trained.model, options)
        self.corpus: Corpus = data.load(self.config)
        self._made: dict[tuple[str, str], GPT] = {}

    def held_out(self) -> list[tuple[Tokens, Tokens]]:
        """Return (tokens, targets) of the batches that every variant is evaluated on."""
        found = [self.corpus.held_out_batch(self.config, number) for number in range(self.options.eval_batches)]
        return [(tokens.numpy(), targets.numpy()) for tokens, targets in found]

    def model(self, made: Recipe) -> GPT:
        """Return the fp32 model of a recipe, before it is quantised."""
        key = made.distilled, made.pruned
        if key not in self._made:
            self._made[key] = self._train(*key)
        return self._made[key]

    def _train(self, distilled: str, pruned: str) -> GPT:
        if pruned:
            model = self._pruned(copy.deepcopy(self.model(Recipe(distilled))), pruned)
        elif distilled:
            layers = self.options.student_layers or max(1, self.teacher.shape.n_layer // 2)
            model = distil.student_of(self.teacher, layers)
        else:
            return self.teacher
        given = self.options
        losses, said = distil.distil(
            self.teacher, model, self.corpus, self.config, given.temperature, given.distillation_share
        ), 0.0  # fmt: skip
        for step, loss in enumerate(losses, 1):
            if time.monotonic() > said + SAY_EVERY_S or step == given.steps:
                said = time.monotonic()
                self._say(f"{Recipe(distilled, pruned).name}: step {step} of {given.steps}, loss {loss:.3f}")
        prune.settle(model)
        return model

    def _pruned(self, model: GPT, how: str) -> GPT:
        if how == "structured":
            return prune.remove_smallest(model, self.options.sparsity)
        prune.mask_smallest(model, self.options.sparsity)
        return model


def _config(model: GPT, options: Options) -> RunConfig:
    """Return the config that batches, held-out batches and the optimizer are made with."""
    knobs = {
        "strategy": "local",
        "steps": options.steps,
        "warmup_steps": 0,
        **{name: getattr(options, name) for name in ("data", "batch_size", "learning_rate", "seed", "num_threads")},
    }
    return make_config({**model.shape.model_dump(), **knobs}, "compress")


def compress(
    trained: Saved, recipes: Sequence[Recipe], options: Options, out: Path, say: Callable[[str], None]
) -> None:
    """Write models, variants.jsonl and launches.jsonl into a new folder."""
    torch.set_num_threads(options.num_threads)
    layers = trained.model.shape.n_layer
    if options.student_layers is not None and options.student_layers > layers:
        raise BadInput(f"--student-layers: {options.student_layers} is more than the model's {layers}")
    maker = Maker(trained, options, say)
    batches = maker.held_out()
    files.open_folder(out)
    (out / "models").mkdir()
    files.write_json(out / "environment.json", environment.collect())
    how = measure.lengths(trained.model.shape.block_size)
    about = {**asdict(options), "reads_bytes": trained.reads_bytes, "prompt_tokens": how.prompt}
    files.write_json(out / results.OPTIONS, {**about, "model": trained.model.shape.model_dump()})
    usable = []
    for made in recipes:
        variant = _make(maker, made, options, batches, out)
        results.append(out, results.VARIANTS, variant)
        say(f"{made.name}: {variant.status}" + (f": {variant.reason}" if variant.reason else ""))
        usable += [variant] if variant.status == "ok" else []
    prompts = maker.corpus.held_out_batch(_config(maker.teacher, _with_batch(options)), 0)[0].numpy()
    for repeat in range(options.repeats):
        random.Random(f"{options.seed} {repeat}").shuffle(usable)
        for variant in list(usable):
            try:
                found = measure.in_process(measure.time_variant, out / variant.file, options.num_threads, prompts)
                results.append(out, results.LAUNCHES, Launch(variant=variant.name, repeat=repeat, **found))
            except (BadInput, RuntimeError) as error:
                failed = variant.model_copy(update={"status": "failed", "reason": str(error)})
                results.append(out, results.VARIANTS, failed)
                usable.remove(variant)
                say(f"{variant.name}: failed: {error}")
        say(f"timed, repeat {repeat + 1} of {options.repeats}")


def _with_batch(options: Options) -> Options:
    return Options(**{**asdict(options), "batch_size": measure.LARGE_BATCH})


def _make(maker: Maker, made: Recipe, options: Options, batches: Sequence[tuple[Tokens, Tokens]], out: Path) -> Variant:
    """Make one variant, write it, read it in another process, compare its logits and evaluate it."""
    reason = missing(made)
    if reason:
        return Variant(name=made.name, status="unsupported", reason=reason)
    model = maker.model(made)
    weights = [p.detach() for p in model.parameters()]
    counts = {
        "num_parameters": sum(w.numel() for w in weights),
        "nonzero_parameters": sum(int((w != 0).sum()) for w in weights),
    }
    try:
        path, expected = _write(model, made, maker, torch.from_numpy(batches[0][0]), out)
    except BadInput as error:
        return Variant(name=made.name, status="unsupported", reason=str(error))
    try:
        losses, found = measure.in_process(measure.evaluate, path, options.num_threads, batches)
    except (BadInput, RuntimeError) as error:
        return Variant(name=made.name, status="failed", reason=str(error))
    error_found = None if expected is None else float(np.abs(found - expected.numpy()).max())
    wrong = error_found is not None and not error_found <= RELOAD_TOLERANCE
    values: dict[str, Any] = {
        **counts,
        "losses": losses,
        "size_bytes": path.stat().st_size,
        "reload_error": error_found,
    }
    return Variant(
        name=made.name,
        status="invalid" if wrong else "ok",
        reason=f"read again, a logit differs by {error_found:.2g}" if wrong else "",
        file=str(path.relative_to(out)),
        **values,
    )


@torch.no_grad()
def _write(model: GPT, made: Recipe, maker: Maker, tokens: Tensor, out: Path) -> tuple[Path, Tensor | None]:
    """Write a variant; return its file and the logits that it must give, None where the library quantises the file."""
    if made.runtime:
        path = out / "models" / f"{made.name}{onnx_file.SUFFIX}"
        onnx_file.write(path, model, made, maker.options.data)
        return path, None if made.quantised else model.logits(tokens)
    if made.quantised:
        model = copy.deepcopy(model)
        quantise(prune.linears(model), made.quantised)
    path = out / "models" / f"{made.name}{export.SUFFIX}"
    export.write(path, model, made, maker.options.data)
    return path, model.logits(tokens)
