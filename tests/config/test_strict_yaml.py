"""Laws of YAML files: what is read has one meaning; the rest is refused on one line, in bounded time and memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench.config.errors import BadInput
from bench.config.strict_yaml import MAX_BYTES, MAX_NODES, parse_yaml, read_yaml

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_what_was_written_is_read(value: object) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", "yes"), ("On", "On"), ("true", True), ("0x1F", 31), ("1e-4", 1e-4), ("1e3", 1000.0), ("-0.5", -0.5),
     ('"010"', "010"), ("'1:30'", "1:30"), ("'2020-01-01'", "2020-01-01"), ("0", 0), ("0.5", 0.5), ("~", None),
     ("", None),
     ("10.0.0.0/24", "10.0.0.0/24"), ("0x_", "0x_"),
     ("{a: &x {b: 1}, c: {<<: *x, b: 2}}", {"a": {"b": 1}, "c": {"b": 2}}),
    ],
)  # fmt: skip
def test_words_and_numbers_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(text)
    assert (found, type(found)) == (value, type(value))


def bomb(width: int, height: int) -> str:
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, height)]
    return "\n".join([f"a0: &a0 [{', '.join('x' * width)}]", *lines])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "line 2: the key 'a' is there twice"),
        ("a: {b: 1, c: 2, b: 1}", "line 1: the key 'b' is there twice"),
        ("a: 010", "line 1: '010' is octal"),
        ("a: -01_0", "octal"),
        ("a:\n- 1:30", "line 2: '1:30' is a number of base 60"),
        ("a: 190:20:30.15", "base 60"),
        ("a: 2020-11-05", "is a date"),
        ("a: 2020-13-45", "is a date"),
        ("a: 2001-12-14t21:59:43.10-05:00", "is a date"),
        ("a: !!int abc", "a tag"),
        ("a: !!python/object:os.system x", "a tag"),
        ("a: !own {}", "a tag"),
        ("? [a]\n: 1", "a key must be a word"),
        ("1: 2", "a key must be a word"),
        ("a: [" * 3000, "levels of lists"),
        ("- " * 3000 + "x", "levels of lists"),
        ("&a [*a]", "an alias inside what it stands for"),
        (bomb(9, 9), f"more than {MAX_NODES} values"),
        ("[" + "1," * (MAX_NODES + 1) + "]", f"more than {MAX_NODES} values"),
        ("a: " + "9" * 5000, "a number of 5000 digits"),
        ("a: \0", "not YAML"),
        ("a: [", "line 1: not YAML"),
        ("a: 1\n---\nb: 2", "line 2: not YAML"),
        ("*a", "undefined alias"),
        ("a: {<<: 3}", "not YAML"),
    ],
    ids=lambda text: text[:20],
)
def test_the_rest_is_refused_on_one_line(text: str, said: str) -> None:
    with pytest.raises(BadInput) as refusal:
        parse_yaml(text)
    assert said in str(refusal.value)
    assert str(refusal.value).isprintable()


def test_a_file_is_read_as_utf_8_and_named(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xbc")
    assert read_yaml(path) == {"a": "ü"}
    for content, said in (
        (b"a: \xff", "byte 3 is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "bytes"),
        (b"a: 010", "line 1: "),
    ):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=f"^{path}: .*{said}"):
            read_yaml(path)
