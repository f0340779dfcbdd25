"""What a results folder holds is read by name, completely, or refused with the line that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import records
from bench.config import BadInput
from tests.support.synthetic import make_record


def folder(path: Path, number: int = 3) -> Path:
    for repeat in range(number):
        records.append(path, make_record(repeat=repeat, strategy="ring_allreduce", num_workers=2))
    return path


def test_a_last_record_without_a_newline_is_kept(tmp_path: Path) -> None:
    path = folder(tmp_path) / "runs.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert len(records.read(tmp_path)) == 3
    records.append(tmp_path, make_record(repeat=3, strategy="ring_allreduce", num_workers=2))
    assert [record.repeat for record in records.read(tmp_path)] == [0, 1, 2, 3]


def test_half_a_last_record_is_removed(tmp_path: Path) -> None:
    path = folder(tmp_path) / "runs.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    records.append(tmp_path, make_record(repeat=3, strategy="ring_allreduce", num_workers=2))
    assert [record.repeat for record in records.read(tmp_path)] == [0, 1, 3]


def test_a_byte_order_mark_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = folder(tmp_path) / "runs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert len(records.read(tmp_path)) == 3


def changed(line: dict[str, Any], **values: Any) -> str:
    return json.dumps({**line, **values})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda line: changed(line, run_id="../../x-r1"), "run_id"),
        (lambda line: changed(line, cell="../x"), "cell"),
        (lambda line: changed(line, repeat=7), "its repeat 7"),
        (lambda line: changed(line, summary={**line["summary"], "tokens_per_s": -5.0}), "tokens_per_s is -5.0"),
        (lambda line: changed(line, summary={**line["summary"], "step_s": float("inf")}), "step_s is inf"),
        (lambda line: changed(line, config={**line["config"], "batch_size": 3}), "other configs"),
        (lambda line: "[" * 100_000, "not a run record"),
        (lambda line: '{"repeat": ' + "9" * 5000 + "}", "not a run record"),
        (lambda line: "\udcff", "not a run record"),
        (lambda line: "null", "not a run record"),
        (lambda line: changed(line, config=[1]), "not a run record"),
        (lambda line: changed(line, config="x"), "not a run record"),
    ],
)
def test_a_record_that_cannot_be_true_is_refused_with_its_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], str], complaint: str
) -> None:
    path = folder(tmp_path) / "runs.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = change(json.loads(lines[1]))
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))
    with pytest.raises(BadInput, match=complaint) as found:
        records.read(tmp_path)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 600
    assert complaint == "other configs" or "runs.jsonl:2: " in str(found.value)
