"""Commands on a trained model: compress and generate."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bench.actions.results import report_edge
from bench.actions.sweeps import refuse_ranks
from bench.config import BadInput
from bench.output import has_reader

if TYPE_CHECKING:
    from bench.rank.saved import Saved


def compress(arguments: argparse.Namespace) -> int:
    """Make variants of a trained model and measure them."""
    refuse_ranks("compress")
    from bench.edge import recipe
    from bench.edge.libraries import missing

    recipes = recipe.parse(recipe.DEFAULT if arguments.variants is None else arguments.variants)
    for made in recipes if arguments.variants is not None else []:  # of the default ones, those are rows `unsupported`
        if missing(made):
            raise BadInput(f"--variants: {made.name}: {missing(made)}")
    if recipe.Recipe() not in recipes:
        recipes = [recipe.Recipe(), *recipes]  # all are compared with it
    from bench.edge.compress import Options, compress
    from bench.rank import saved

    trained = saved.read(arguments.file, arguments.n_head)
    data = trained.data if arguments.data is None else arguments.data
    if data is None:
        raise BadInput(f"{arguments.file}: does not say what it was trained on; give --data")
    names = [name for name in Options.__dataclass_fields__ if name != "data"]
    options = Options(data=data, **{name: getattr(arguments, name) for name in names})
    compress(trained, recipes, options, arguments.out, lambda line: print(line, flush=True))
    return report_edge(arguments.out)


def _trained(arguments: argparse.Namespace) -> Saved:
    """Return the model in a file of psring run, or of psring compress."""
    from bench.edge import export
    from bench.rank import saved

    if arguments.file.suffix == export.SUFFIX and arguments.file.is_file():
        if arguments.n_head is not None:
            raise BadInput(f"--n-head: {arguments.file} says how many heads its model has; leave --n-head out")
        return export.read(arguments.file)[0]
    return saved.read(arguments.file, arguments.n_head)


def generate(arguments: argparse.Namespace) -> int:
    """Print text that a trained model writes."""
    refuse_ranks("generate")
    from bench.edge import generate

    trained = _trained(arguments)
    prompt = generate.encode(arguments.prompt, trained.model.shape.vocab_size, trained.reads_bytes)
    if not prompt:
        raise BadInput("--prompt: is empty; give at least one token")
    sampling = generate.Sampling(arguments.temperature, arguments.top_k, arguments.seed)
    decode = generate.decoder(trained.reads_bytes)
    print(arguments.prompt if trained.reads_bytes else arguments.prompt + " ", end="")
    for token in generate.generate(trained.model, prompt, arguments.max_tokens, sampling):
        print(decode(token), end="", flush=True)
        if not has_reader():
            break
    print()
    return 0
