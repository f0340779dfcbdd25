"""`psring validate`: scores of known errors, held-out cells of a committed study, predictions made before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bench.config import BadInput
from bench.predict.measured import Measured, read
from bench.predict.validate import Point, as_text, score, validate

STUDY = Path(__file__).parents[2] / "results/2026-11-26-topology"
Psring = Callable[..., CompletedProcess[str]]


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


def test_predictions_written_before_are_scored(psring: Psring, tmp_path: Path) -> None:
    assert psring("predict", STUDY, "--out", tmp_path / "before.csv").returncode == 0
    ended = psring("validate", STUDY, "--predictions", tmp_path / "before.csv")
    assert ended.returncode == 0, ended.stderr
    assert "15 held-out cells, predicted before they ran" in ended.stdout
    (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
    ended = psring("validate", STUDY, "--predictions", tmp_path / "wrong.csv")
    assert ended.returncode == 2
    assert "give the file of psring predict --out" in ended.stderr


def test_without_cells_to_hold_out_it_is_refused() -> None:
    with pytest.raises(BadInput, match="give another --fit-up-to"):
        validate(STUDY, 8)
