"""The libraries of the extra psring[edge], imported when a variant needs them."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from importlib.util import find_spec
from typing import Any

from bench.config import BadInput
from bench.edge.recipe import Recipe


def library(name: str) -> Any:
    """Return a module of torchao, safetensors, onnx or onnxruntime; BadInput if it cannot be imported."""
    os.environ.setdefault("TORCHAO_SKIP_LOADING_SO_FILES", "1")  # kernels of GPUs, of which it warns on a CPU
    before = logging.root.manager.disable
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise BadInput(f"{package} cannot be imported ({error}); pip install 'psring[edge]'") from None
    finally:
        logging.disable(before)


def missing(recipe: Recipe) -> str:
    """Return what is not installed of what a variant needs, and the command that mends it; blank if nothing is."""
    needed = ["onnx", "onnxruntime"] if recipe.runtime else ["safetensors", *(["torchao"] if recipe.quantised else [])]
    absent = [name for name in needed if find_spec(name) is None]
    return f"{', '.join(absent)} not installed; pip install 'psring[edge]'" if absent else ""
