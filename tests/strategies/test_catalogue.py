"""Laws of the catalogue: a strategy is declared there once, and nowhere else is it asked for by name."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from bench.config import BadInput, RunConfig
from bench.sweep.file import Sweep
from strategies import catalogue
from strategies.base import Strategy
from strategies.catalogue import CATALOGUE
from strategies.options import STRATEGY_KNOBS

REPOSITORY = Path(__file__).parent.parent.parent
SOURCES = [
    path
    for folder in ("bench", "strategies")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
    if path.name != "catalogue.py"
]


def compared_names(source: str) -> list[int]:
    """Lines that compare with a strategy's name, look it up, or list it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            places = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            places = [key for key in node.keys if key]
        elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            places = list(node.elts)
        elif isinstance(node, ast.Subscript):
            places = [node.slice]
        elif isinstance(node, ast.MatchValue):
            places = [node.value]
        else:
            continue
        found += [one.lineno for one in places if isinstance(one, ast.Constant) and one.value in CATALOGUE]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_other_file_compares_the_name_of_a_strategy(path: Path) -> None:
    assert compared_names(path.read_text()) == []


def test_the_search_for_comparisons_finds_them() -> None:
    source = 'a == "ddp"\nb in ("x", "local")\n{"mpi_ring": 1}\nc["ddp"]\nd = "ddp"'
    assert sorted(compared_names(source)) == [1, 2, 3, 4]


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_an_entry_names_knobs_that_exist_and_what_makes_its_strategy(entry: catalogue.Entry) -> None:
    assert set(entry.knobs) <= set(STRATEGY_KNOBS)
    assert {entry.tunes, entry.message_knob, *entry.process_knobs} - {""} <= set(entry.knobs)
    if entry is not catalogue.RING_ALLREDUCE:  # Horovod may be missing
        made = catalogue.load(entry.path)
        assert not isinstance(made, type) or issubclass(made, Strategy)


def test_every_knob_of_topology_and_wire_is_read_by_a_strategy() -> None:
    assert {knob for entry in CATALOGUE.values() for knob in entry.knobs} == set(STRATEGY_KNOBS)


def cells(block: dict[str, object], **defaults: object) -> list[RunConfig]:
    return Sweep.model_validate({"defaults": defaults, "grid": [block]}).runs("sweep.yaml")


def test_a_knob_is_dropped_for_strategies_that_do_not_read_it_beside_one_that_does() -> None:
    found = cells({"strategy": ["ring_allreduce", "parameter_server"], "num_workers": 2, "num_servers": [1, 2]})
    assert [(cell.strategy, cell.num_servers) for cell in found] == [
        ("ring_allreduce", 0), ("parameter_server", 1), ("parameter_server", 2),
    ]  # fmt: skip
    both = cells({"strategy": ["mpi_ring", "ddp"], "num_workers": 2}, segment_bytes=4096)
    assert [cell.segment_bytes for cell in both] == [4096, RunConfig().segment_bytes]


@pytest.mark.parametrize("strategy", ["ring_allreduce", ["ring_allreduce", "ddp"]])
def test_a_knob_that_no_strategy_of_the_block_reads_is_refused(strategy: object) -> None:
    with pytest.raises(BadInput, match="grid block 1: num_servers: ring_allreduce does not read it"):
        cells({"strategy": strategy, "num_servers": 1})


def test_a_folder_that_names_a_module_of_python_itself_does_not_import_it() -> None:
    sys.modules.pop("this", None)
    assert catalogue.find("this:Zen").title == "Zen"
    assert "this" not in sys.modules
