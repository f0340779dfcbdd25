"""Documentation holds: its commands parse, its sweep files are read, and what it names exists."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from bench.arguments import build_parser, knobs, parse
from bench.mpi import RankInfo, complete_config
from bench.records import LABELS
from bench.sweep.file import read_sweep

REPOSITORY = Path(__file__).parent.parent
PAGES = [*(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")),
         *sorted((REPOSITORY / "docs").glob("*.md"))]  # fmt: skip
TEXT = "\n".join(page.read_text() for page in PAGES)
GOSSIP = REPOSITORY / "tests" / "packages" / "gossip" / "gossip.py"
FOLDERS = ("bench", "strategies", "scripts", "tests", "examples", "docs")
INTERNAL = {"ranks", "template"}  # commands that psring itself starts
PLACEHOLDERS = ("<", "{", "*", "…")
SEPARATORS = ("&&", "||", "|", ";", ">", "&")


class Block(NamedTuple):
    """A fenced block: where it is, and its text."""

    where: str
    text: str


def blocks(language: str) -> list[Block]:
    """Every fenced block in a language."""
    found = []
    for page in PAGES:
        for match in re.finditer(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            if match[1] == language:
                line = page.read_text()[: match.start()].count("\n") + 1
                found.append(Block(f"{page.relative_to(REPOSITORY)}:{line}", match[2]))
    return found


def commands() -> list[tuple[str, list[str]]]:
    """Every simple command in the sh blocks: where it is, its words."""
    found = []
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), ";"]:
                if word not in SEPARATORS:
                    words.append(word)
                elif words:
                    found.append((block.where, words))
                    words = []
    return found


@pytest.fixture(autouse=True)
def _gossip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strategy that docs/add-a-strategy.md shows can be imported."""
    monkeypatch.syspath_prepend(GOSSIP.parent)


def test_the_page_shows_the_strategy_that_is_tested() -> None:
    (shown,) = (block.text for block in blocks("python") if block.where.startswith("docs/add-a-strategy.md"))
    assert shown == GOSSIP.read_text()
    (entry_point,) = (block.text for block in blocks("toml") if block.where.startswith("docs/add-a-strategy.md"))
    assert entry_point in GOSSIP.with_name("pyproject.toml").read_text()


def name(case: tuple[str, list[str]]) -> str:
    return f"{case[0]} {' '.join(case[1])}"


OURS = [(where, words) for where, words in commands() if "psring" in words]


def test_there_are_commands_to_check() -> None:
    assert len(OURS) > 30


@pytest.mark.parametrize("case", OURS, ids=name)
def test_a_printed_command_is_understood(case: tuple[str, list[str]]) -> None:
    _, words = case
    while "psring" in words:  # psring cluster exec n0 -- mpirun -n 3 psring run ...
        at = words.index("psring")
        launcher, words = words[:at], words[at + 1 :]
        arguments = parse(words)
        assert arguments.command
        if arguments.command == "run":
            size = next((int(n) for flag, n in itertools.pairwise(launcher) if flag in ("-n", "-np")), 1)
            started_by = next((word for word in launcher if word in ("mpirun", "horovodrun")), "none")
            given = {knob: value for knob, value in knobs(arguments).items() if knob != "tuned"}  # it names a file
            complete_config(given, RankInfo(started_by, 0, size, 0), links={})


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.where)
def test_a_printed_sweep_file_is_read(block: Block, tmp_path: Path) -> None:
    document = yaml.safe_load(block.text)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"grid": [{"strategy": "local"}], **document}))
    assert read_sweep(tmp_path / "sweep.yaml").runs(block.where)


def test_printed_python_compiles() -> None:
    for block in blocks("python"):
        assert compile(block.text, block.where, "exec").co_code


def exists(path: str) -> bool:
    """Whether a file, folder or module (whose ending may be left out) is there."""
    return any((REPOSITORY / f"{path}{ending}").exists() for ending in ("", ".py"))


def test_every_file_that_is_named_exists() -> None:
    named = {word for _, words in commands() for word in words if word.startswith(tuple(f"{f}/" for f in FOLDERS))}
    named |= set(re.findall(rf"`((?:{'|'.join(FOLDERS)})/[^` ]*)", TEXT))
    named = {path for path in named if not any(sign in path for sign in PLACEHOLDERS)}
    assert len(named) > 10
    assert sorted(path for path in named if not exists(path)) == []


@pytest.mark.parametrize("command", sorted({*build_parser()[1]} - INTERNAL))
def test_every_command_is_documented(command: str) -> None:
    assert f"psring {command}" in TEXT


@pytest.mark.parametrize("label", LABELS)
def test_every_label_is_explained(label: str) -> None:
    assert f"`{label}`" in (REPOSITORY / "docs" / "method.md").read_text()


def test_every_sweep_file_and_script_is_named() -> None:
    files = [*(REPOSITORY / "bench" / "sweeps").glob("*.yaml"), *(REPOSITORY / "scripts").glob("*.py")]
    assert sorted(path.name for path in files if path.name not in TEXT) == []
