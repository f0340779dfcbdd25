"""Read YAML files that mean one thing only: no key twice, words and numbers as YAML 1.2 has them, bounded sizes.

PyYAML reads YAML 1.1, where `yes` is true, `010` is 8 and `1:30` is 90. Here `yes` is a word, and what other readers of
YAML take for another number or for a date is refused. The bounds keep a file of a few lines from taking gigabytes.
"""

from __future__ import annotations

import errno
import re
import stat
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bench.config.errors import BadInput

MAX_BYTES = 1 << 20
MAX_NODES = 20_000  # keys and values, those of aliases counted at every place where they are used
MAX_DEPTH = 20
MAX_DIGITS = 60
MERGE_KEY = "<<"

_RESOLVED = (  # YAML 1.2, section 10.3.2 (core schema), without 0o17
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     list("-+.0123456789")),
    ("merge", MERGE_KEY, ["<"]),
)  # fmt: skip
_AMBIGUOUS = (
    (re.compile(r"[-+]?0[0-9_]+"), "is octal for some readers of YAML; leave the leading 0 out"),
    (
        re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"),
        "is a number of base 60 for some readers of YAML; write a plain number",
    ),
    (
        re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?"),
        "is a date for some readers of YAML; write something else",
    ),
)


class _Refused(yaml.MarkedYAMLError):
    """What is valid YAML and still not read here."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's loader, with the numbers and words of YAML 1.2 and the bounds above."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # as PyYAML declares it

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Return the next node; _Refused past the bounds, and for an explicit tag."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth, self._num_nodes = self._depth + 1, self._num_nodes + 1
        if self._depth > MAX_DEPTH:
            raise _Refused(f"more than {MAX_DEPTH} levels of lists and mappings", event.start_mark)
        if self._num_nodes > MAX_NODES:
            raise _Refused(f"more than {MAX_NODES} values", event.start_mark)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _Refused("a tag (!!int and the like), which is not read here; leave it out", event.start_mark)
        node: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Return a mapping; _Refused if a key is no word or is there twice."""
        node: MappingNode = super().compose_mapping_node(anchor)
        found = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode) or not key.tag.endswith((":str", ":merge")):
                raise _Refused("a key must be a word", key.start_mark)
            if key.value in found:
                raise _Refused(f"the key {_shown(key.value)} is there twice; keep one", key.start_mark)
            found.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> ScalarNode:
        """Return a scalar; _Refused for one that other readers of YAML read as another value."""
        node: ScalarNode = super().compose_scalar_node(anchor)
        why = next((why for pattern, why in _AMBIGUOUS if pattern.fullmatch(node.value)), None)
        if node.style is None and why:
            raise _Refused(f"{_shown(node.value)} {why}, or put it in quotes if it is a name", node.start_mark)
        if node.style is None and len(node.value) > MAX_DIGITS and not node.tag.endswith(":str"):
            raise _Refused(f"a number of {len(node.value)} digits", node.start_mark)
        return node

    def construct_number(self, node: ScalarNode) -> int | float:
        """Return the number that a scalar of tag int or float says."""
        text = node.value.lower()
        if node.tag.endswith(":float"):
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
        return int(text, 16 if text.startswith("0x") else 10)


for _name, _pattern, _first in _RESOLVED:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _first)
for _name in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _Loader.construct_number)


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds; BadInput names the file and the line. OSError if it cannot be read."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise OSError(errno.EINVAL, "it is no regular file")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise BadInput(f"{path}: more than {MAX_BYTES} bytes")
    try:
        return parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def parse_yaml(text: str) -> Any:
    """Return what a YAML document holds; BadInput names the line, where one is to blame."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except _Refused as error:
        raise BadInput(_where(error) + str(error.problem)) from None
    except yaml.MarkedYAMLError as error:
        raise BadInput(f"{_where(error)}not YAML: {' '.join(filter(None, (error.context, error.problem)))}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"not YAML: {' '.join(str(error).split())}") from None


def _where(error: yaml.MarkedYAMLError) -> str:
    return f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""


def _shown(text: str) -> str:
    return ascii(text if len(text) <= MAX_DIGITS else text[:MAX_DIGITS] + "…")


def _check_size(root: Node) -> None:
    """Raise _Refused if the document, each alias replaced by what it stands for, is endless or too large."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Node) -> int:
        if id(node) in open_nodes:
            raise _Refused("an alias inside what it stands for", node.start_mark)
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(map(size, _children(node)))
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if size(root) > MAX_NODES:
        raise _Refused(f"more than {MAX_NODES} values, with those that aliases stand for", root.start_mark)


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []
