"""`psring validate`: scores of known errors, held-out cells of a committed study, predictions made before."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bench.cli import main
from bench.config import BadInput
from bench.predict.measured import Measured, read
from bench.predict.validate import Point, as_text, score, validate

STUDY = Path(__file__).parents[2] / "results/2026-11-26-topology"


@pytest.fixture(scope="module")
def points() -> list[Point]:
    return [Point(one, one.tokens_per_s, 0.0, 1e12) for one in read(STUDY) if one.cell.num_nodes == 8]


def truth(points: list[Point]) -> list[float]:
    return [point.one.tokens_per_s for point in points]


def test_right_predictions_have_no_error(points: list[Point]) -> None:
    found = score(points, truth(points))
    assert (found.mape, found.largest, found.bias, found.kendall_tau) == pytest.approx((0, 0, 0, 1))
    assert found.wrong_winners == 0 < found.pairs


def test_scores_are_those_of_known_errors(points: list[Point]) -> None:
    low = score(points, [0.9 * value for value in truth(points)])
    assert (low.mape, low.bias, low.wrong_winners) == (pytest.approx(0.1), pytest.approx(-0.1), 0)
    turned = score(points, [1 / value for value in truth(points)])
    assert turned.kendall_tau == pytest.approx(-1)
    assert turned.wrong_winners == turned.pairs


def test_equivalent_cells_have_no_winner(points: list[Point]) -> None:
    equal: list[Measured] = [points[0].one, points[0].one]
    assert score([Point(one, 1.0, 0.0, 2.0) for one in equal], [1.0, 2.0]).pairs == 0


def test_the_model_beats_naive_predictors_on_held_out_nodes() -> None:
    found = validate(STUDY, 4)
    own = score(found.points, [point.predicted for point in found.points])
    assert own.mape < 0.05
    assert own.wrong_winners == 0
    assert len(found.naive) == 3
    assert all(own.mape < score(found.points, predicted).mape / 3 for predicted in found.naive.values())
    assert "held-out cells, fitted to 10 cells" in as_text(found)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What psring predict wrote before the runs."""
    path = tmp_path_factory.mktemp("before") / "before.csv"
    assert main(["predict", str(STUDY), "--out", str(path)]) == 0
    return path.read_text()


def test_predictions_written_before_are_scored(before: str, tmp_path: Path) -> None:
    rows = list(csv.reader(before.splitlines()))
    (tmp_path / "before.csv").write_text(before)
    assert "15 held-out cells, predicted before they ran" in as_text(validate(STUDY, 4, tmp_path / "before.csv"))
    alone, with_fit = (validate(STUDY, 4, tmp_path / "before.csv", fitted_to) for fitted_to in (None, STUDY))
    assert set(with_fit.naive) - set(alone.naive) == {"(aN+b)(eM+f), fitted"}
    with pytest.raises(BadInput, match="give them, too"):
        validate(STUDY, 4, None, STUDY)
    with (tmp_path / "before.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(row[::-1] for row in (rows[0], *rows[:1:-1]))  # columns are read by name
    found = validate(STUDY, 4, tmp_path / "before.csv")
    assert len(found.points) == 14
    assert "1 measured cells have no prediction" in as_text(found)
    assert rows[1][0] not in {point.one.name for point in found.points}


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        *[("tokens_per_s", v, "line 2: tokens_per_s: ") for v in ("nan", "inf", "-5", "0", "1_000", "fast", "1e99")],
        *[("tokens_per_s_low", value, "line 2: ") for value in ("nan", "", "1e9")],
        ("tokens_per_s_high", "1", "is not within its band"),
        ("num_workers", "999", "num_workers is '999', and"),
        ("cell", "", "1 measured cells"),
    ],
)  # fmt: skip
def test_an_edited_prediction_is_refused_by_its_line(
    column: str, value: str, said: str, before: str, tmp_path: Path
) -> None:
    first, *others = csv.DictReader(before.splitlines())
    with (tmp_path / "edited.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(first))
        writer.writeheader()
        writer.writerows([{**first, column: value}, *others])
    if column == "cell":
        assert said in as_text(validate(STUDY, 4, tmp_path / "edited.csv"))
    else:
        with pytest.raises(BadInput, match=f"edited.csv: .*({said}).*give the file of psring predict --out"):
            validate(STUDY, 4, tmp_path / "edited.csv")


def test_what_psring_predict_did_not_write_is_refused(before: str, tmp_path: Path) -> None:
    header, first, *others = before.splitlines()
    for content, said in {
        "a,b\n1,2\n": "the column cell is there 0 times",
        before.replace("tokens_per_s_low", "tokens_per_s", 1): "is there 2 times|is there 0 times",
        "\n".join([header, first, first, *others]): "a cell is there twice",
        before.rstrip("\n").rpartition(",")[0]: "shorter",
        before.replace(",", ";"): "the column cell is there 0 times",
        header: "none of its cells was measured",
        (STUDY / "summary.csv").read_text(): "the column extrapolated",  # measurements predict themselves
    }.items():
        (tmp_path / "wrong.csv").write_text(content)
        with pytest.raises(BadInput, match=said):
            validate(STUDY, 4, tmp_path / "wrong.csv")


def test_a_fit_and_predictions_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(STUDY), "--fit-up-to", "4", "--predictions", "x.csv"]) == 2
    assert capsys.readouterr().err.startswith("psring: --fit-up-to: nothing is fitted with --predictions")


def test_without_cells_to_hold_out_it_is_refused() -> None:
    with pytest.raises(BadInput, match="give another --fit-up-to"):
        validate(STUDY, 8)
