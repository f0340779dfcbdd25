"""Build a RunConfig from a user's strings or values, and from a file of `psring tune`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from bench.config.errors import BadInput
from bench.config.run import AllKnobs, RunConfig
from bench.config.strict_yaml import read_yaml
from strategies import catalogue

MAX_SHOWN = 80
Config = TypeVar("Config", bound=AllKnobs)


def make_config(values: Mapping[str, object], where: str) -> RunConfig:
    """Build a RunConfig from strings or values; BadInput in one line that begins with `where`."""
    return _validate(RunConfig, values, where)


def read_knobs(values: Mapping[str, object], where: str) -> AllKnobs:
    """Validate every value by itself, whether or not they fit together; BadInput as for make_config."""
    return _validate(AllKnobs, values, where)


def _validate(model: type[Config], values: Mapping[str, object], where: str) -> Config:
    if values.get("tuned"):
        _check_knob("tuned", values["tuned"], where)
        values = {**_tuned_knobs(values, where), **values}
    try:
        config = model.model_validate(dict(values))
        catalogue.check(config.strategy)
    except ValidationError as error:
        raise BadInput(f"{where}: {first_problem(error, AllKnobs.model_fields)}") from None
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
    for name, value in knobs.items():
        if name != catalogue.find(strategy).tunes:
            raise BadInput(
                f"tuned: {path}: {strategy}: {shorten(name)} is no knob that psring tune sets; "
                f"make one: psring tune --out {path}.new"
            )
        _check_knob(name, value, f"tuned: {path}: {strategy}")
    return knobs


def read_tuned(path: str) -> dict[str, dict[str, Any]]:
    """Read a file of `psring tune`: an entry per strategy, with `knobs`; BadInput if it cannot be read."""
    make_one = f"make one: psring tune --out {path}.new"
    try:
        content = read_yaml(Path(path))
    except FileNotFoundError:
        raise BadInput(f"tuned: there is no file {path}; psring tune --out {path} makes it") from None
    except OSError as error:
        raise BadInput(f"tuned: {path} cannot be read: {error.strerror}") from None
    except BadInput as error:
        raise BadInput(f"tuned: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"tuned: {path} is no file of psring tune; {make_one}")
    for entry in content.values():
        if not isinstance(entry, dict) or not isinstance(entry.get("knobs"), dict):
            raise BadInput(f"tuned: {path} is no file of psring tune; {make_one}")
    return dict(content)


def _check_knob(name: str, value: object, where: str) -> None:
    try:
        AllKnobs.model_validate({name: value})
    except ValidationError as error:
        raise BadInput(f"{where}: {first_problem(error, AllKnobs.model_fields)}") from None


def first_problem(error: ValidationError, known: Iterable[str]) -> str:
    """Return pydantic's first error as one line that names the field and the value."""
    problem = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {shorten(path)}{nearest(path, known)}"
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return message if not path or message.startswith(path) else f"{path}: {message}"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{path}: {message}, not {shorten(problem['input'])}".removeprefix(": ")


def shorten(value: object) -> str:
    """Return how a value is written, on one line and not longer than MAX_SHOWN characters."""
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4300 digits
        return "one that is too long to print"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + " …"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean …?' with the closest known word, '' if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
