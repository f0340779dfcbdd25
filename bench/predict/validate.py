"""How well the model predicts: cells that no fit has seen, against what was measured and three naive predictors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from bench.config import BadInput, shorten
from bench.intervals import median_interval
from bench.predict import crossings, measured, predictions
from bench.predict.calibration import ClusterCalibration
from bench.predict.crossings import MARGIN, Rated, same_work
from bench.predict.fit import Fit, fit, regime
from bench.predict.grid import alone_tokens_per_s
from bench.predict.measured import Measured
from bench.predict.simulate import expected
from bench.predict.table import bytes_sent

FIT_UP_TO = 4  # nodes
Predictor = Callable[[Measured], float]  # seconds of a step


@dataclass(frozen=True)
class Point:
    """A held-out cell: its measured and predicted tokens per second, and the band."""

    one: Measured
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted / self.one.tokens_per_s - 1


@dataclass(frozen=True)
class Validation:
    """Held-out points, the number of fitted cells, those that could not be predicted, naive predictions, crossovers."""

    points: list[Point]
    num_fitted: int
    refused: list[str]
    naive: dict[str, list[float]]  # tokens per second, in the order of points
    crossings: list[crossings.Crossing]  # of curves through held-out cells and, with a fit, the cells that it saw
    alone: str = ""  # cells that were only measured, or only predicted


def validate(folder: Path, most_nodes: int, written: Path | None = None, fitted_to: Path | None = None) -> Validation:
    """Fit on cells of at most `most_nodes` nodes and predict the others, or read what was `written` before the runs.

    `fitted_to` is the folder that those predictions were fitted to: the naive predictor that is fitted needs it.
    """
    found = measured.read(folder)
    if fitted_to is not None and written is None:
        raise BadInput("--fit: is the folder that --predictions were fitted to; give them, too")
    if written is not None:
        points, alone = _scored(written, found)
        seen = measured.read(fitted_to) if fitted_to else []
        return Validation(points, 0, [], _naive(points, seen), _crossings(points), alone)
    seen = [one for one in found if one.cell.num_nodes <= most_nodes]
    held_out = [one for one in found if one.cell.num_nodes > most_nodes]
    if not seen or not held_out:
        raise BadInput(
            f"{folder}: {len(seen)} cells have at most {most_nodes} nodes and {len(held_out)} more; "
            "validation needs both: give another --fit-up-to"
        )
    fitted = fit(seen)
    known = [one for one in held_out if fitted.regimes is None or regime(one.config) in fitted.regimes]
    refused = sorted({regime(one.config) for one in held_out} - {regime(one.config) for one in known})
    points = [_point(fitted, one) for one in known]
    if not points:
        raise BadInput(f"{folder}: no held-out cell has a regime that was fitted ({', '.join(refused)})")
    crossed = _crossings([*(_point(fitted, one) for one in seen), *points])
    return Validation(points, len(seen), refused, _naive(points, seen), crossed)


def _crossings(points: Sequence[Point]) -> list[crossings.Crossing]:
    return crossings.crossings([Rated(point.one, point.predicted) for point in points])


def _point(fitted: Fit, one: Measured) -> Point:
    predicted, half = expected(one.cell, fitted.calibration).tokens_per_s, fitted.half_band(one.cell)
    return Point(one, predicted, predicted * math.exp(-half), predicted * math.exp(half))


def _scored(path: Path, found: Sequence[Measured]) -> tuple[list[Point], str]:
    """Return the rows of `psring predict --out` whose cells were measured, and which cells are only on one side."""
    rows = predictions.read(path)
    points = [Point(one, rows[one.name].middle, rows[one.name].low, rows[one.name].high)
              for one in found if one.name in rows]  # fmt: skip
    if not points:
        raise BadInput(f"--predictions: {path}: none of its cells was measured; predict the sweep that was run")
    for one in (point.one for point in points):
        for name, said in rows[one.name].same.items():
            if said != str(getattr(one.config, name)):
                raise BadInput(
                    f"--predictions: {path}: {one.name}: {name} is {shorten(said)}, and {getattr(one.config, name)} "
                    f"in the cell; give the file of psring predict --out"
                )
    more, fewer = len(found) - len(points), len(rows) - len(points)
    alone = [f"{more} measured cells have no prediction"] * (more > 0)
    alone += [f"{fewer} predicted cells have no ok run"] * (fewer > 0)
    return points, "; ".join(alone)


def _naive(points: Sequence[Point], seen: Sequence[Measured]) -> dict[str, list[float]]:
    """Return what three simple predictors say of the points, tokens per second."""
    predictors: dict[str, Predictor] = {"linear scaling": _alone_s, "2(N-1)/N·M/B, no fit": _ring_s}
    if len(seen) > 3:
        predictors["(aN+b)(eM+f), fitted"] = _product(seen)
    return {
        name: [point.one.config.tokens_per_step / predictor(point.one) for point in points]
        for name, predictor in predictors.items()
    }


def _alone_s(one: Measured) -> float:
    """Return the step of one worker that communicates with nobody."""
    if one.config.compute == "real":
        return one.forward_backward_s + one.optimizer_s
    tokens = one.config.tokens_per_step / one.config.num_workers
    return tokens / max(alone_tokens_per_s(one.cell, ClusterCalibration()), 1e-9)


def _ring_s(one: Measured) -> float:
    n = one.config.num_workers
    try:
        goodput = ClusterCalibration(payload_share=1.0).goodput(one.config.link)
    except BadInput:
        return _alone_s(one)
    return _alone_s(one) + 2 * (n - 1) / n * one.cell.payload / goodput


def _product(seen: Sequence[Measured]) -> Predictor:
    """Fit step = (aN + b)(eM + f) to all cells together: aeNM + afN + beM + bf, least squares, at least the compute."""

    def terms(one: Measured) -> list[float]:
        n, m = float(one.config.num_workers), (bytes_sent(one.cell) or 0.0) / 1e6
        return [n * m, n, m, 1.0]

    values, *_ = np.linalg.lstsq(np.array([terms(one) for one in seen]), [one.step_s for one in seen], rcond=None)
    return lambda one: max(float(np.dot(values, terms(one))), _alone_s(one))


@dataclass(frozen=True)
class Scores:
    """Errors of predicted throughputs, as shares."""

    mape: float
    largest: float
    bias: float
    kendall_tau: float
    pairs: int  # of cells on equal nodes whose measured difference is a verdict
    wrong_winners: int


def score(points: Sequence[Point], predicted: Sequence[float]) -> Scores:
    """Return the errors of predictions, and how often they name the wrong winner among cells on equal hardware."""
    from scipy.stats import kendalltau

    truth = [point.one.tokens_per_s for point in points]
    errors = np.array(predicted) / np.array(truth) - 1
    tau = float(kendalltau(truth, predicted).statistic) if len(points) > 1 else math.nan
    wrong = pairs = 0
    for i, j in combinations(range(len(points)), 2):
        if _comparable(points[i].one, points[j].one) and _differ(points[i].one, points[j].one):
            pairs += 1
            wrong += (truth[i] > truth[j]) != (predicted[i] > predicted[j])
    return Scores(
        float(np.abs(errors).mean()), float(np.abs(errors).max()), float(errors.mean()), tau, pairs, wrong
    )  # fmt: skip


def _comparable(a: Measured, b: Measured) -> bool:
    """Whether two cells are rivals: equal nodes, links and work per worker."""
    same_place = a.cell.num_nodes == b.cell.num_nodes and a.config.link == b.config.link
    return same_place and same_work(a.config, b.config)


def _differ(a: Measured, b: Measured) -> bool:
    """Whether their difference is beyond the margin and their intervals do not overlap."""
    if abs(a.tokens_per_s / b.tokens_per_s - 1) <= MARGIN:
        return False
    one, other = (median_interval(x.config.tokens_per_step / s for s in x.seconds) for x in (a, b))
    slower, faster = sorted((one, other), key=lambda found: found.value)
    return not slower.high >= faster.low  # NaN, of a single launch, does not overlap


def as_text(found: Validation) -> str:
    """Return a line per point, the scores of the model and of naive predictors, and the coverage of the bands."""
    lines = [f"{'nodes':>5}  {'cell':40}{'measured':>12}{'predicted':>12}{'error':>8}  90 % band"]
    for point in sorted(found.points, key=lambda point: (point.one.cell.num_nodes, regime(point.one.config))):
        one = point.one
        name = f"{regime(one.config)} {one.config.num_workers}" + f" + {one.config.num_servers}" * (
            one.config.num_servers > 0
        )
        inside = "" if point.low <= one.tokens_per_s <= point.high else "  missed"
        lines.append(
            f"{one.cell.num_nodes:5}  {name:40}{one.tokens_per_s:12,.0f}{point.predicted:12,.0f}"
            f"{point.error:+8.1%}  {point.low:,.0f} to {point.high:,.0f}{inside}"
        )
    covered = sum(point.low <= point.one.tokens_per_s <= point.high for point in found.points)
    fitted = f"fitted to {found.num_fitted} cells" if found.num_fitted else "predicted before they ran"
    lines += ["", f"{len(found.points)} held-out cells, {fitted}; {covered} inside their 90 % band"]
    lines += [found.alone] * bool(found.alone)
    lines += [f"not predicted, because nothing alike was fitted: {', '.join(found.refused)}"] * bool(found.refused)
    lines += ["", f"{'':24}{'MAPE':>8}{'largest':>9}{'bias':>8}{'tau':>7}  wrong winners"]
    rows = {"psring predict": [point.predicted for point in found.points], **found.naive}
    for name, predicted in rows.items():
        s = score(found.points, predicted)
        lines.append(
            f"{name:24}{s.mape:8.1%}{s.largest:9.1%}{s.bias:+8.1%}{s.kendall_tau:7.2f}  {s.wrong_winners} of {s.pairs}"
        )
    return "\n".join([*lines, "", *crossings.as_text(found.crossings)])
