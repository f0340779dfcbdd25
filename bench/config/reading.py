"""Build a RunConfig from a user's strings or values, and from a file of `psring tune`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bench.config.errors import BadInput
from bench.config.run import RunConfig
from strategies import catalogue


def make_config(values: Mapping[str, object], where: str) -> RunConfig:
    """Build a RunConfig from strings or values; BadInput in one line that begins with `where`."""
    if values.get("tuned"):
        values = {**_tuned_knobs(values, where), **values}
    try:
        config = RunConfig.model_validate(dict(values))
        catalogue.check(config.strategy)
    except ValidationError as error:
        raise BadInput(f"{where}: {first_problem(error, RunConfig.model_fields)}") from None
    except ValueError as error:
        raise BadInput(f"{where}: strategy: {error}") from None
    return config


def _tuned_knobs(values: Mapping[str, object], where: str) -> Mapping[str, object]:
    """Return a strategy's knobs in a file of `psring tune`; none for strategies without communication."""
    path, strategy = str(values["tuned"]), str(values.get("strategy", catalogue.LOCAL.name))
    found = read_tuned(path)
    if catalogue.find(strategy).tunes and strategy not in found:
        raise BadInput(f"{where}: {path} has no {strategy}; psring tune --strategy {strategy} --out {path}")
    knobs: Mapping[str, object] = found[strategy]["knobs"] if strategy in found else {}
    return knobs


def read_tuned(path: str) -> dict[str, dict[str, Any]]:
    """Read a file of `psring tune`: an entry per strategy, with `knobs`; BadInput if it cannot be read."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"tuned: there is no file {path}; psring tune --out {path} makes it") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"tuned: {path} cannot be read: {' '.join(str(error).split())}") from None
    entries = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(entry, dict) and isinstance(entry.get("knobs"), dict) for entry in entries):
        raise BadInput(f"tuned: {path} is no file of psring tune; make one: psring tune --out {path}.new")
    return dict(content)


def first_problem(error: ValidationError, known: Iterable[str]) -> str:
    """Return pydantic's first error as one line that names the field and the value."""
    problem = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {path!r}{nearest(path, known)}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{path}: {message}, not {problem['input']!r}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean …?' with the closest known word, '' if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
