"""The report of compressed models: ratios to the original, the front, and rows without numbers."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pandas as pd
import pytest

from bench.config import BadInput
from bench.edge.results import LAUNCHES, VARIANTS, Launch, Variant, append
from bench.report import edge_figure, labels
from bench.report.edge import QUALITY, answer_of, summarize, write_report


def launch(name: str, repeat: int, tokens_per_s: float) -> Launch:
    return Launch(
        variant=name, repeat=repeat, load_s=0.1, prefill_s=0.01, token_s_p50=1 / tokens_per_s,
        token_s_p95=2 / tokens_per_s, tokens_per_s=tokens_per_s, tokens_per_s_batch_8=5 * tokens_per_s,
        peak_memory_bytes=1000,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Original; `small` is twice as fast, half as large, 1 % worse; `poor` is faster still and 10 % worse."""
    for name, loss, size, speed in (("original", 2.0, 1000, 1.0), ("small", 2.02, 500, 2.0), ("poor", 2.2, 600, 4.0)):
        append(tmp_path, VARIANTS, Variant(name=name, losses=[loss, loss * 1.1], size_bytes=size, num_parameters=9))
        for repeat in range(6):
            drift = 1 + 0.1 * repeat  # of the machine: a ratio within a repeat does not see it
            append(tmp_path, LAUNCHES, launch(name, repeat, 100 * speed * drift * (1 + 0.001 * (repeat % 2))))
    append(tmp_path, VARIANTS, Variant(name="int8", status="unsupported", reason="torchao | not installed"))
    return tmp_path


def test_ratios_are_paired_and_the_loss_decides_who_is_named(folder: Path) -> None:
    table = summarize(folder, reads_bytes=True).set_index("name")
    assert table["speed"]["small"] == pytest.approx(2)
    assert table["speed_high"]["small"] - table["speed_low"]["small"] < 0.02
    assert table["loss_ratio"]["small"] == pytest.approx(1.01)
    assert table["size_ratio"]["small"] == 0.5
    assert table["bits_per_byte"]["original"] == pytest.approx(2.1 / math.log(2))
    assert table["perplexity"]["original"] == pytest.approx(math.exp(2.1))
    assert dict(table["verdict"]) == {"original": "", "small": "faster", "poor": "faster", "int8": ""}
    assert dict(table["on_front"]) == {"original": True, "small": True, "poor": True, "int8": False}
    assert "small, 2.0" in answer_of(table.reset_index())


def test_a_row_without_numbers_has_its_reason_and_blanks(folder: Path) -> None:
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "| int8 | unsupported | torchao \\| not installed |" in text
    row = pd.read_csv(folder / "variants.csv").set_index("name").loc["int8"]
    assert row[["loss", "tokens_per_s", "size_bytes", "speed"]].isna().all()


def test_a_later_line_of_a_variant_holds(folder: Path) -> None:
    append(folder, VARIANTS, Variant(name="small", status="failed", reason="out of memory"))
    table = summarize(folder, reads_bytes=False).set_index("name")
    assert table["status"]["small"] == "failed"
    assert math.isnan(table["tokens_per_s"]["small"])
    assert table["bits_per_byte"].isna().all()


def test_nobody_is_named_if_all_lose_too_much(folder: Path) -> None:
    table = summarize(folder, reads_bytes=True)
    assert answer_of(table[table["name"] != "small"]).startswith("No variant keeps")


def test_the_front_and_the_original_are_named_in_both_panels_and_nothing_is_cut_off(folder: Path) -> None:
    append(folder, VARIANTS, Variant(name="distilled+int8_dynamic+onnx", losses=[1.9, 2.0], size_bytes=100))
    append(folder, VARIANTS, Variant(name="dominated", losses=[9.0, 9.0], size_bytes=5000))
    for repeat in range(2):
        append(folder, LAUNCHES, launch("distilled+int8_dynamic+onnx", repeat, 900.0))
        append(folder, LAUNCHES, launch("dominated", repeat, 1.0))
    for narrow in (False, True):
        figure = edge_figure.pareto_figure(summarize(folder, reads_bytes=True), narrow)
        figure.draw_without_rendering()
        for axes in figure.axes:
            named = {str(line.get_label()) for line in labels.named_lines(axes)}
            assert named == {"original", "distilled + int8 dynamic + onnx"}
            boxes = [text.get_window_extent() for text in axes.texts]
            assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert len(figure.axes) == 2


def test_a_change_of_loss_has_a_sign_and_its_interval_the_word_to(folder: Path) -> None:
    rows = {row["name"]: row for row in summarize(folder, reads_bytes=True).to_dict("records")}
    change = QUALITY["loss change, %"]
    assert change(rows["small"]) == "+1.00 (+1.00 to +1.00)"
    assert change({**rows["small"], "loss_ratio": 0.999999, "loss_ratio_low": 0.95}) == "+0.00 (-5.00 to +1.00)"


def test_what_has_no_verdict_is_said_beside_its_speed(tmp_path: Path) -> None:
    for name, speed in (("original", 100.0), ("small", 200.0)):
        append(tmp_path, VARIANTS, Variant(name=name, losses=[2.0], size_bytes=1000))
        append(tmp_path, LAUNCHES, launch(name, 0, speed))
    assert "2.00× the original's tokens per second (no verdict), 1.00× its size" in answer_of(
        summarize(tmp_path, False)
    )


def test_a_folder_without_variants_or_with_damaged_ones_is_refused(tmp_path: Path, folder: Path) -> None:
    (folder / VARIANTS).write_text("{\n")
    with pytest.raises(BadInput, match=VARIANTS):
        summarize(folder, reads_bytes=True)
    (folder / VARIANTS).write_text("")
    with pytest.raises(BadInput, match="no variants"):
        summarize(folder, reads_bytes=True)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (VARIANTS, {"losses": [-1.0]}), (VARIANTS, {"losses": [math.nan]}), (VARIANTS, {"size_bytes": 10**30}),
        (VARIANTS, {"name": "../x"}), (LAUNCHES, {"tokens_per_s": 0}), (LAUNCHES, {"token_s_p50": math.inf}),
        (LAUNCHES, {"repeat": -1}), (LAUNCHES, {"variant": "<script>"}),
    ],
)  # fmt: skip
def test_a_number_that_cannot_be_true_is_refused_by_its_line(
    file: str, change: dict[str, object], folder: Path
) -> None:
    lines = (folder / file).read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), **change})
    (folder / file).write_text("\n".join([*lines, ""]))
    with pytest.raises(BadInput, match=f"{file}:2: .*{next(iter(change))}"):
        summarize(folder, reads_bytes=True)


def test_half_a_last_line_of_a_killed_writer_is_left_out_and_a_launch_counts_once(folder: Path) -> None:
    before = summarize(folder, reads_bytes=True)
    first = (folder / LAUNCHES).read_text().splitlines()[0]
    with (folder / LAUNCHES).open("a") as file:
        file.write(first + "\n" + first[:40])
    pd.testing.assert_frame_equal(summarize(folder, reads_bytes=True), before)


@pytest.mark.parametrize(
    ("name", "content"), [(VARIANTS, b"\xff\n"), (LAUNCHES, None), ("compress.json", b"[" * 100_000)]
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes | None, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    if content is None:
        os.mkfifo(folder / name)
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(BadInput, match=f"{name}: cannot be read"):
        write_report(folder)
