"""The published corpus as a table: measured beside predicted, which rows their band holds, which winners are right."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from statistics import median

from bench.output import markdown
from bench.predict.published.corpus import Measurement
from bench.predict.published.score import BAND, MARGIN, Pair, Prediction, pairs

UNITS = {
    "samples_per_s": "samples/s", "samples_per_s_per_gpu": "samples/s per worker",
    "tokens_per_s_per_gpu": "tokens/s per worker", "efficiency": "efficiency", "step_s": "s per step",
    "speed_ratio": "ratio of speeds",
}  # fmt: skip
COLUMNS = (
    "study", "row", "measure", "measured", "rounding", "predicted_low", "predicted", "predicted_high", "holds",
    "predicted_over_measured", "bounded_by", "reason", "link_is_known", "source", "url",
)  # fmt: skip


def reason(found: Prediction) -> str:
    """Return why a row may be missed, '' for one that is held.

    That is what the source or a note says, and the one setting outside its range that would explain the measurement.
    """
    if found.holds:
        return ""
    slower = found.ratio > 1
    words = "measured slower than predicted" if slower else "measured faster than predicted"
    would = f"; explained by {found.needs}" if found.needs else "; no one setting explains it"
    note = f"; {found.row.note}" if found.row.note else ""
    return f"{words}, {found.bounded_by} bound{would}{note}"


def as_csv(predictions: Sequence[Prediction]) -> str:
    """Return a row per measurement."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for found in predictions:
        row = found.row
        writer.writerow([
            row.study, row.label, row.measure, f"{row.value:.6g}", f"{row.rounding:.3g}", f"{found.low:.6g}",
            f"{found.middle:.6g}", f"{found.high:.6g}", str(found.holds).lower(), f"{found.ratio:.4g}",
            found.bounded_by, reason(found), str(row.link_is_known).lower(), row.source, row.url,
        ])  # fmt: skip
    return text.getvalue()


def summary(predictions: Sequence[Prediction]) -> list[str]:
    """Return the numbers that judge the model: rows held, the bands' widths, winners."""
    known = [found for found in predictions if found.row.link_is_known]
    ranked = pairs(predictions)
    topologies = [pair for pair in ranked if pair.topologies]
    covers = f"{100 * (BAND[1] - BAND[0]):.0f} % band"
    return [
        f"{_share([found.holds for found in predictions])} of the measurements lie in their {covers}; "
        f"of those whose link is stated or bounded, {_share([found.holds for found in known])}.",
        f"Half of the bands are narrower than a factor of {median(found.width for found in predictions):.2f}.",
        f"Predicted over measured speed: median {median(found.ratio for found in predictions):.2f}; "
        f"{_share([abs(found.ratio - 1) <= 0.1 for found in predictions])} within 10 %.",
        f"Server against ring, {_winners(topologies)}.",
        f"All arms that a source compares, {_winners(ranked)}.",
    ]


def _share(held: Sequence[bool]) -> str:
    return f"{sum(held)} of {len(held)} ({100 * sum(held) / len(held):.0f} %)" if held else "0 of 0"


def _winners(found: Sequence[Pair]) -> str:
    decided = [pair.verdict for pair in found if pair.verdict != "equivalent"]
    counts = {word: decided.count(word) for word in ("right", "wrong", "undecided")}
    share = 100 * counts["wrong"] / max(1, len(decided))
    return (
        f"{len(decided)} pairs that differ by more than {100 * MARGIN:.0f} %: {counts['right']} right winners, "
        f"{counts['wrong']} wrong ({share:.0f} %), {counts['undecided']} predicted as equal"
    )


def as_text(predictions: Sequence[Prediction]) -> list[str]:
    """Return a line per measurement, and one for the reason of a miss."""
    lines = [f"{'':74}{'measured':>10}{'predicted':>11}  90 % band"]
    for found in predictions:
        row = found.row
        name = f"{row.study}: {row.label}"
        band = f"{found.low:.4g} to {found.high:.4g}"
        lines.append(
            f"{name[:73]:74}{row.value:>10.4g}{found.middle:>11.4g}  {band:22}{'' if found.holds else 'missed'}"
        )
        if not found.holds:
            lines.append(f"    {reason(found)}")
    return lines


def as_markdown(predictions: Sequence[Prediction]) -> str:
    """Return the summary, the table by source, and the pairs."""
    lines = [*(f"- {line}" for line in summary(predictions)), ""]
    for study in dict.fromkeys(found.row.study for found in predictions):
        group = [found for found in predictions if found.row.study == study]
        lines += [f"### {markdown(study)}", "", _link(group[0].row), ""]
        lines += ["| row | measured | predicted | band | | reason of a miss |", "| --- | --- | --- | --- | --- | --- |"]
        lines += [_line(found) for found in group]
        lines.append("")
    ranked = pairs(predictions)
    if ranked:
        lines += ["### Winners", "", "| source | first | second | measured | predicted | |", "| --- " * 6 + "|"]
        for each in ranked:
            arms = " | ".join(map(markdown, (each.study, each.first, each.second)))
            lines.append(f"| {arms} | {each.measured:.3g} | {each.predicted:.3g} | {each.verdict} |")
    return "\n".join(lines).rstrip() + "\n"


def _link(row: Measurement) -> str:
    source = markdown(row.source)
    return f"[{source}]({row.url})" if re.fullmatch(r"https?://[^\s()<>]+", row.url) else source


def _line(found: Prediction) -> str:
    row, held = found.row, "held" if found.holds else "**missed**"
    numbers = f"{row.value:.4g} {UNITS[row.measure]} | {found.middle:.4g} | {found.low:.4g} to {found.high:.4g}"
    return f"| {markdown(row.label)} | {numbers} | {held} | {markdown(reason(found))} |"
