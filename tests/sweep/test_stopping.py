"""Laws of stopping: narrow intervals or a spent budget end a sweep; no run is lost or repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import records
from bench.config import BadInput
from bench.sweep import run as sweep
from bench.sweep.file import read_sweep
from bench.sweep.stopping import MIN_LAUNCHES, BudgetSpent, StopCondition, imprecise_cells
from tests.support.launches import instant
from tests.support.plans import QUIET, make_sweep
from tests.support.synthetic import make_failure, make_record


def test_a_cell_is_precise_once_its_interval_is_within_the_target() -> None:
    narrow = [make_record(repeat=r, tokens_per_s=1000 + r) for r in range(MIN_LAUNCHES)]
    wide = [make_record(repeat=r, tokens_per_s=1000 * (1 + r), batch_size=4) for r in range(MIN_LAUNCHES)]
    assert imprecise_cells([*narrow, *wide], 0.05) == {wide[0].cell}
    assert imprecise_cells([*narrow, *wide], 0.9) == set()


def test_too_few_launches_are_never_precise() -> None:
    equal = [make_record(repeat=r) for r in range(MIN_LAUNCHES - 1)]
    assert imprecise_cells(equal, 0.5) == {equal[0].cell}


def test_a_failed_cell_is_not_imprecise() -> None:
    assert imprecise_cells([make_failure("failed", "no")], 0.05) == set()


def test_the_condition_raises_once_the_budget_is_spent() -> None:
    StopCondition(None).check()
    StopCondition(3600).check()
    with pytest.raises(BudgetSpent):
        StopCondition(0).check()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("budget: 5 parsecs", "is not a time above zero; write 90s, 30min or 2h"),
        ("budget: 0s", "is not a time above zero"),
        ("precision_target: 0.05", "give a budget too"),
        ("{budget: 1h, precision_target: 5}"[1:-1], "less than 1"),
    ],
)
def test_a_sweep_without_a_certain_end_is_refused(tmp_path: Path, keys: str, said: str) -> None:
    (tmp_path / "sweep.yaml").write_text(f"{{grid: [{{strategy: local}}], {keys}}}")
    with pytest.raises(BadInput, match=said):
        read_sweep(tmp_path / "sweep.yaml")


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("{grid: [{strategy: local}], budget: 2h}")
    found = read_sweep(tmp_path / "sweep.yaml", {"budget": "30min", "precision_target": "0.05"})
    assert (found.budget_s, found.precision_target) == (1800, 0.05)


def test_cells_are_repeated_until_they_are_precise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_wide = iter([1])  # cells that are still too wide before each further repeat
    plan = make_sweep([{"strategy": "local", "batch_size": [1, 2]}])
    cells = [cell.digest() for cell in plan.runs("plan")]
    monkeypatch.setattr(sweep, "imprecise_cells", lambda *_: set(cells[: next(num_wide, 0)]))
    plan = plan.model_copy(update={"precision_target": 0.05, "budget": "10min"})
    sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)
    launches = [sum(record.cell == cell for record in records.read(tmp_path)) for cell in cells]
    assert launches == [2, 1]


def test_a_spent_budget_leaves_a_resumable_folder(tmp_path: Path) -> None:
    plan = make_sweep([{"strategy": "local", "batch_size": [1, 2, 3, 4]}])
    assert sweep.run_sweep(plan.model_copy(update={"budget": "0.001s"}), "plan", tmp_path, QUIET, instant) == []
    assert len(sweep.run_sweep(plan, "plan", tmp_path, QUIET, instant)) == 4
