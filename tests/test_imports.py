"""Who may import whom: read from the sources, so that no import hides in a function."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("bench", "strategies")
    for path in (REPOSITORY / folder).rglob("*.py")
}
WITHOUT_TORCH = [
    "shape", "config", "sweep_file", "records", "intervals", "stats", "duels", "compare", "progress", "looks",
    "panels", "figures", "tables", "sections", "report", "answer", "sweep", "status", "slurm", "launch",
    "ledger", "environment", "doctor", "devices", "emulate.durations", "emulate.similitude",
]  # fmt: skip
MAY_IMPORT = {
    "bench.shape": set(),
    "bench.config": {"bench.shape"},
    "bench.arguments": {"bench.config"},
    "bench.sweep_file": {"bench.config"},
    "bench.launch": {"bench.config", "bench.emulate.layout"},
    "bench.emulate.layout": {"bench.config"},
    "bench.emulate.nap": set(),
    "bench.liveness": {"strategies.base"},
    "bench.emulate.cluster": {"bench.config", "bench.emulate", "bench.emulate.layout", "bench.emulate.nap"},
    "bench.devices": set(),
    "bench.duplex": {"bench.config"},
    "bench.emulate.durations": {"bench.config", "bench.devices", "bench.shape"},
    "bench.emulate.similitude": {
        "bench.config",
        "bench.devices",
        "bench.emulate",
        "bench.emulate.durations",
        "bench.emulate.layout",
        "bench.shape",
    },
    "bench.emulate.compute": {
        "bench.config",
        "bench.data",
        "bench.model",
        "bench.emulate",
        "bench.emulate.durations",
    },
    "bench.records": {"bench.config"},
    "bench.ledger": {"bench.config", "bench.records"},
    "bench.environment": {"bench.config", "bench.launch"},
    "bench.ends": {"bench.config", "bench.launch", "bench.records"},
    "bench.estimate": {
        "bench.config",
        "bench.emulate",
        "bench.emulate.layout",
        "bench.environment",
        "bench.ledger",
        "bench.records",
    },
    "bench.folder": {"bench.config", "bench.environment", "bench.records", "bench.sweep_file"},
    "bench.journal": {"bench.folder", "bench.records"},
    "bench.trace": {"bench.clock", "bench.records", "strategies.base"},
    "bench.stopping": {"bench.records", "bench.intervals"},
    "bench.slurm": {"bench.config"},
    "bench.intervals": set(),
    "bench.stats": {"bench.records", "bench.config", "bench.intervals", "bench.shape"},
    "bench.duels": {"bench.stats", "bench.intervals"},
    "bench.progress": {"bench.stats", "bench.intervals"},
    "bench.looks": {"bench.stats", "bench.config", "bench.shape"},
    "bench.panels": {"bench.looks", "bench.config"},
    "bench.figures": {"bench.stats", "bench.config", "bench.looks", "bench.panels"},
    "bench.emulate.link": {"bench.config", "bench.emulate.layout"},
    "bench.train": {
        "bench.clock", "bench.config", "bench.data", "bench.emulate.link", "bench.model", "bench.records",
        "strategies.base",
    },
}  # fmt: skip
HOMES = {
    "mpi4py": {"bench.duplex", "bench.group", "strategies.parameter_server", "strategies.mpi_ring"},
    "horovod": {"strategies.ring_allreduce"},
    "matplotlib": {"bench.figures", "bench.panels"},
    "pyarrow": {"bench.progress"},
}


def imports(name: str) -> set[str]:
    """Every module that the source names in an import, those for type checkers left out."""
    tree = ast.parse(MODULES[name].read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own(name: str) -> set[str]:
    """The modules of this project among them."""
    return {found for found in imports(name) if found in MODULES} - {"bench", "strategies"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("strategies")])
def test_strategies_know_nothing_of_the_harness(name: str) -> None:
    assert not any(found.split(".")[0] == "bench" for found in imports(name))


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_room_imports_only_its_neighbours(name: str) -> None:
    assert own(name) <= MAY_IMPORT[name]


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_tables_and_launchers_need_neither_torch_nor_mpi(name: str) -> None:
    reached, todo = set(), [f"bench.{name}"]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += own(module)
    heavy = {found.split(".")[0] for module in reached for found in imports(module)} & {"torch", "mpi4py", "horovod"}
    assert not heavy


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library: str) -> None:
    users = {name for name in MODULES if any(found.split(".")[0] == library for found in imports(name))}
    strangers = {name for name in users if not any(name.startswith(home) for home in HOMES[library])}
    assert users
    assert not strangers


def test_no_module_shadows_a_library() -> None:
    assert not {name.split(".")[-1] for name in MODULES} & {"horovod", "torch", "mpi4py", "statistics"}
