"""The order of the layers, read from the sources, so that no import hides in a function."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
# Top first. A layer imports from itself and from those below it.
LAYERS = (
    "bench.cli", "bench.report", "bench.predict", "bench.sweep", "bench.edge", "bench.rank", "bench.nodes", "bench",
    "strategies",
)  # fmt: skip
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("bench", "strategies")
    for path in (REPOSITORY / folder).rglob("*.py")
}
# What starts fast, and works where torch, MPI and Horovod are not installed.
LIGHT = (
    "strategies.options", "strategies.group", "strategies.join", "strategies.environment", "strategies.volume",
    "bench.cli", "bench.actions", "bench.arguments", "bench.config", "bench.report", "bench.predict", "bench.sweep",
    "bench.nodes",
)  # fmt: skip
HOMES = {
    "mpi4py": (
        "bench.rank",
        "strategies.parameter_server",
        "strategies.mpi_ring",
        "strategies.group",
        "strategies.join",
        "strategies.uneven",
    ),
    "horovod": ("strategies.ring_allreduce",),
    "matplotlib": ("bench.report",),
    "pyroute2": ("bench.nodes",),
}


def layer(module: str) -> int:
    """The number of the layer a module is in, 0 on top; the command is one layer."""
    module = "bench.cli" if module.startswith(("bench.arguments", "bench.actions")) else module
    return next(i for i, name in enumerate(LAYERS) if module == name or module.startswith(f"{name}."))


def imports(name: str, deferred: bool = True) -> set[str]:
    """Every module that the source names in an import, those for type checkers left out."""
    tree = ast.parse(MODULES[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree) if deferred else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= submodules or {node.module}
    return found


def packages(module: str) -> set[str]:
    """The packages that Python imports before a module of theirs."""
    words = module.split(".")
    return {".".join(words[:end]) for end in range(1, len(words))} & set(MODULES)


def own(name: str, deferred: bool = True) -> set[str]:
    """The modules of this project among them."""
    return imports(name, deferred) & set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_layer_imports_only_from_itself_and_from_below(name: str) -> None:
    assert {found for found in own(name) if layer(found) < layer(name)} == set()


def test_nothing_imports_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for found in own(name, deferred=False) - {name}:
                visit(found, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(LIGHT)])
def test_tables_and_launchers_need_neither_torch_nor_mpi(name: str) -> None:
    reached: set[str] = set()
    todo = [name]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += own(module, deferred=False) | packages(module)
    heavy = {found.split(".")[0] for module in reached for found in imports(module, deferred=False)}
    assert not heavy & {"torch", "mpi4py", "horovod"}


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library: str) -> None:
    users = {name for name in MODULES if any(found.split(".")[0] == library for found in imports(name))}
    assert users
    assert {name for name in users if not name.startswith(HOMES[library])} == set()


def test_no_test_imports_another() -> None:
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        ours = [node.module for node in found if node.module and node.module.startswith("tests.")]
        assert [name for name in ours if not name.startswith("tests.support.")] == [], path
