"""Others' measurements: the data hold together, and a prediction depends on settings alone."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.config import BadInput
from bench.predict.published.corpus import Arm, Measurement, half_digit, read_corpus, read_rows
from bench.predict.published.models import built_in
from bench.predict.published.ranges import Range, at
from bench.predict.published.sampling import draw, middle
from bench.predict.published.score import Prediction, pairs, predict
from bench.predict.published.settings import Settings
from bench.predict.published.step import step
from bench.predict.published.table import as_csv, as_markdown, as_text, reason, summary
from bench.report.published import check_folder, write_folder

FORM = Path(__file__).parents[2] / "examples" / "published.yaml"
CORPUS = read_corpus()


def settings(**changes: object) -> Settings:
    """A server on each of 8 nodes with one GPU, 10 Gbit/s."""
    given: dict[str, object] = {
        "model": "resnet-50", "strategy": "parameter_server", "placement": "colocated", "num_gpus": 8,
        "num_servers": 8, "batch_size": 32, "link": "10gbit", "goodput_share": 0.9, "single_gpu": 200.0,
    }  # fmt: skip
    return Settings.model_validate(given | changes)


def step_s(**changes: object) -> float:
    found = settings(**changes)
    return step(found, built_in()[found.model]).step_s


@pytest.mark.parametrize("name", built_in())
def test_a_models_tensors_add_up_to_its_published_parameters(name: str) -> None:
    assert built_in()[name].size == pytest.approx(built_in()[name].parameters, rel=0.02)
    assert built_in()[name].source


@pytest.mark.parametrize(("name", "giga_multiplications"), [
    ("inception-v3", 5.7), ("resnet-50", 3.9), ("resnet-101", 7.6), ("resnet-152", 11.3), ("vgg-16", 15.5),
])  # fmt: skip
def test_a_models_flops_are_the_published_ones(name: str, giga_multiplications: float) -> None:
    assert built_in()[name].forward_flops(1) == pytest.approx(2e9 * giga_multiplications, rel=0.03)


def test_every_row_names_a_public_source_and_every_range_its_reason() -> None:
    assert len(CORPUS) > 100
    for row in CORPUS:
        assert row.source, row.study
        assert row.url.startswith("https://github.com/"), row.study
        assert all(len(found.because) > 10 for found in row.arm.ranges.values()), row.study


def test_rows_of_a_study_share_their_ranges() -> None:
    """No range is a single row's: what is assumed is assumed for a study, an arm of it, or for a model."""
    named = [found.name for row in CORPUS for found in row.arm.ranges.values() if "row" not in found.name]
    assert len(named) > 0.98 * sum(len(row.arm.ranges) for row in CORPUS)


def test_draws_stay_in_their_range_and_fill_it() -> None:
    arm = CORPUS[0].arm
    for key, found in arm.ranges.items():
        drawn = [getattr(each, key) for each in draw(arm, 16)]
        if found.any_of:
            assert set(drawn) == set(found.any_of)
        else:
            assert len(set(drawn)) == 16
            assert drawn.count(at(found, 0.5 / 16)) == drawn.count(at(found, 15.5 / 16)) == 1
    assert draw(arm, 16) == draw(arm, 16)


def test_arms_that_share_a_range_draw_the_same_value() -> None:
    shared = Range.model_validate({"from": "10gbit", "to": "25gbit", "because": "a class of machines", "name": "x"})
    row = next(row for row in CORPUS if row.study == "tf-k80")
    one = Arm("", row.arm.stated, {**row.arm.ranges, "link": shared})
    other = Arm("", {**row.arm.stated, "num_gpus": 32}, {**row.arm.ranges, "link": shared})
    assert [each.link for each in draw(one, 8)] == [each.link for each in draw(other, 8)]


def test_an_infinite_network_leaves_the_compute() -> None:
    for changes in ({}, {"sharding": "tensors"}, {"strategy": "ring_allreduce"}, {"strategy": "fsdp"}):
        found = step_s(link="10000gbit", goodput_share=1.0, latency_s=0.0, **changes)
        assert found == pytest.approx(32 / 200, rel=0.06), changes


def test_whole_tensors_are_bounded_by_the_largest() -> None:
    largest, rate = built_in()["inception-v3"].largest * 4, 0.9 * 1e9 / 8
    found = step_s(model="inception-v3", sharding="tensors", num_gpus=64, num_servers=64, link="1gbit")
    assert found >= 64 * largest / rate
    assert step_s(model="inception-v3", num_gpus=64, num_servers=64, link="1gbit") < found


def test_the_slower_of_link_and_process_sets_the_rate() -> None:
    assert step_s(link="1gbit") == pytest.approx(step_s(process_bytes_per_s=0.9e9 / 8))


def test_a_step_without_computing_is_a_pull_and_a_push() -> None:
    found = step_s(model="vector-100mb", compute_s=0.0, num_gpus=1, num_servers=4, placement="dedicated",
                   pipelined=False, link="8gbit", goodput_share=1.0, latency_s=0.0)  # fmt: skip
    assert found == pytest.approx(0.2)


def row(value: float, **changes: Any) -> Measurement:
    """A measurement of `settings()` whose link is between 1 and 10 Gbit/s."""
    given = settings().model_dump(exclude_none=True)
    link = Range.model_validate({"from": "1gbit", "to": "10gbit", "because": "it is not said", "name": "link"})
    fields: dict[str, Any] = {
        "study": "one", "source": "a page", "url": "", "measure": "samples_per_s", "value": value, "rounding": 0.0,
        "over": None, "compare": None, "note": "", "models": built_in(),
        "arm": Arm("", {key: each for key, each in given.items() if key != "link"}, {"link": link}),
    }  # fmt: skip
    return Measurement(**{**fields, **changes})


def test_a_measurement_within_the_range_is_held_and_one_beyond_names_the_setting() -> None:
    inside = step(middle(row(1.0).arm), built_in()["resnet-50"]).samples_per_s
    held = predict(row(inside), 16)
    assert held.low < inside < held.high
    assert held.holds
    assert reason(held) == ""
    slow = predict(row(step(settings(link="300mbit"), built_in()["resnet-50"]).samples_per_s), 16)
    assert not slow.holds
    assert slow.needs.startswith("link 0.3")
    assert "measured slower than predicted" in reason(slow)


def prediction(value: float, middle_: float, speeds: tuple[float, ...], **changes: Any) -> Prediction:
    return Prediction(row(value, compare="x", **changes), middle_ * 0.9, middle_, middle_ * 1.1, speeds, "compute", "")


def test_winners_are_right_wrong_undecided_or_equivalent() -> None:
    ring = Arm("ring", {"strategy": "ring_allreduce"}, {})
    slow = prediction(100.0, 100.0, (1.0, 1.0))
    for measured, speeds, verdict in [
        (150.0, (1.5, 1.5), "right"), (150.0, (0.5, 0.5), "wrong"), (150.0, (1.0, 1.0), "undecided"),
        (101.0, (1.5, 1.5), "equivalent"),
    ]:  # fmt: skip
        (pair,) = pairs([prediction(measured, 100.0, speeds, arm=ring), slow])
        assert (pair.verdict, pair.topologies) == (verdict, True)


def test_tables_have_a_row_per_measurement() -> None:
    found = [prediction(100.0, 100.0, (1.0,)), prediction(300.0, 100.0, (1.0,))]
    assert as_csv(found).count("\n") == 3
    assert as_markdown(found).count("**missed**") == 1
    assert len(as_text(found)) == 4  # a heading, two rows, a reason
    assert summary(found)[0].startswith("1 of 2 (50 %)")


def test_half_of_the_last_digit_is_left_open() -> None:
    assert half_digit(20) == pytest.approx(0.025)
    assert half_digit(20.0) == pytest.approx(0.0025)
    assert math.isclose(half_digit(0.247), 0.0005 / 0.247)


def test_the_form_for_others_is_read_and_predicted() -> None:
    (first, *_) = read_rows(FORM)
    assert predict(first, 8).low > 0


def damaged(change: dict[str, Any], file: Path) -> Path:
    content = yaml.safe_load(FORM.read_text())
    for key, value in change.items():
        if value is None:
            content.pop(key)
        else:
            content[key] = value
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize(("change", "words"), [
    ({"id": None}, "id is missing"),
    ({"rows": [{"num_gpus": 8}]}, "row 1: one of samples_per_s"),
    ({"rows": [{"num_gpu": 8, "samples_per_s": 1}]}, "unknown key 'num_gpu'; did you mean 'num_gpus'"),
    ({"rows": [{"arm": "DDP", "num_gpus": 8, "samples_per_s": -1}]}, "samples_per_s: -1 is not a number above 0"),
    ({"rows": [{"num_gpus": 8, "speed_ratio": 2}]}, "needs `over`"),
    ({"rows": [{"num_gpus": 8, "samples_per_s": 1, "arm": "none"}]}, "there is no arm 'none'"),
    ({"not_stated": {"link": "fast"}}, "there is no range 'fast'"),
    ({"not_stated": {"link": {"from": "10gbit", "to": "1gbit", "because": "x"}}}, "is empty"),
    ({"not_stated": {}}, "row 1: goodput_share is missing"),
    ({"models": {"mine": {"source": "x", "parameters": 1, "tensors": ["3 by 3"]}}}, "'3 by 3' is no tensor"),
    ({"stated": {"model": "resnet-50"}}, "row 1: batch_size is missing"),
    ({"rows": [{"arm": "DDP", "num_gpus": 8, "model": "resnet", "step_s": 1}]}, "there is no 'resnet'"),
    ({"rows": [{"arm": "DDP", "num_gpus": 8, "efficiency": 90}]}, "efficiency: 90 is not a number above 0, at most 2"),
    ({"rows": [{"arm": "DDP", "num_gpus": 8, "tokens_per_s_per_gpu": 7}]}, "needs `tokens`"),
    ({"rows": [{"arm": "DDP", "num_gpus": 8, "step_s": 1, "latency_s": 50}]}, "row 1: latency_s: "),
    ({"rows": [{"arm": "DDP", "num_gpus": 8, "step_s": 1, "link": "25Gbps"}]}, "row 1: link: '25Gbps' is not a rate"),
    ({"rows": [{"arm": "DDP", "num_gpus": 8, "step_s": 1, "process_bytes_per_s": 1e-9}]}, "process_bytes_per_s: "),
    ({"rows": [{"arm": "DDP", "num_gpus": 8, "step_s": 1, "single_gpu": 1e300}]}, "row 1: single_gpu: "),
    ({"rows": [{"arm": "DDP", "num_gpus": 8, "step_s": 1, "device": "A100"}]}, "device: choose one of"),
    ({"rows": [{"arm": "DDP", "num_gpus": 8, "step_s": 1, "pushes": False}]}, "has no servers to push to"),
    ({"rows": [{"arm": ["DDP"], "num_gpus": 8, "step_s": 1}]}, "row 1: arm: ['DDP'] is no line of text"),
    ({"rows": [{"arm": "DDP", "num_gpus": 8, "step_s": 1, "compare": {"a": 1}}]}, "compare: {'a': 1} is no line"),
    *[({"rounding": wrong}, "row 1: rounding: ") for wrong in ("2%", -1, 7, [1], float("nan"), True)],
    *[({"id": wrong}, "id: ") for wrong in ([1], "two\nlines", "x" * 5000)],
    *[({"not_stated": {"goodput_share": {"from": 0.5, "to": 0.9, "because": "x"}, "batch_size": wrong}}, "batch_size: ")
      for wrong in ({"from": 8, "to": 64, "because": "x"}, {"any_of": [8, 1.5, 64], "because": "x"},
                    {"any_of": [8] * 100, "because": "x"}, {"from": 1, "to": "2gbit", "because": "x"})],
    *[({"not_stated": {"goodput_share": "tcp-share", "link": {**wrong, "because": "x"}}}, "link: ")
      for wrong in ({"from": "fast", "to": "1gbit"}, {"any_of": ["1gbit", "fast", "2gbit"]}, {"from": 1, "to": True})],
    *[({"models": {"mine": {"source": "x", "parameters": 1, "tensors": wrong}}}, "mine.yaml: mine: ")
      for wrong in ([], ["0x5 @1"], ["x".join(["9" * 12] * 40) + " @1"], ["٣x٣ @1"], ["2x2 @1"],
                    [{"times": True, "of": []}],
                    [{"times": 9999, "of": [{"times": 9999, "of": [{"times": 9999, "of": ["1 @1"]}]}]}])],
    ({"models": {"mine": {"source": "x", "parameters": 4, "tensors": ["2x2 @1"], "attention": [-1, 5]}}}, "attention"),
])  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line_that_names_the_place(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as found:
        read_rows(damaged(change, tmp_path / "mine.yaml"))
    assert words in str(found.value)
    assert str(found.value).startswith("mine.yaml: ")


def test_text_of_a_stranger_is_text_in_the_table_and_in_the_figure(tmp_path: Path) -> None:
    text = "![x](http://example.org/x.png) a|b <b> $\\frac$ $a$b"
    content = damaged({"id": text, "source": text, "url": "javascript:alert(1)", "note": text}, tmp_path / "mine.yaml")
    found = [predict(row, 8) for row in read_rows(content)]
    table = as_markdown(found)
    assert not re.search(r"(?<!\\)(!\[|\]\(|<b>|a\|b)", table)
    assert "javascript" not in table
    write_folder(found, tmp_path)  # no formula that matplotlib cannot draw


def test_a_strategy_that_is_not_stated_is_predicted_and_drawn(tmp_path: Path) -> None:
    content = yaml.safe_load(FORM.read_text())
    content["arms"]["DDP"]["stated"].pop("strategy")
    content["not_stated"]["strategy"] = {"any_of": ["ring_allreduce", "fsdp"], "because": "it is not said"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    write_folder([predict(row, 8) for row in read_rows(tmp_path / "mine.yaml")], tmp_path)
    assert (tmp_path / "published.svg").stat().st_size > 0


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("elsewhere"), Path.mkdir])
def test_nothing_but_a_file_is_replaced(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "published.svg")
    with pytest.raises(BadInput, match="only a regular file is replaced"):
        check_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["published.svg"]
