"""A strategy of somebody else's package is run, checked, counted, swept and reported like those of the catalogue."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from bench import records
from bench.config import BadInput, RunConfig, make_config
from bench.ledger import RoleVolumes, make_ledger, predict
from strategies import catalogue
from strategies.volume import Volume
from tests.support.processes import PSRING, REPOSITORY, run_command

PACKAGE = Path(__file__).parent.parent / "packages" / "gossip"
SHORT = ["--steps", "6", "--warmup-steps", "0", "--batch-size", "4", "--block-size", "32"]
SHORT += ["--max-foreign-cpu-share", "1"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The PYTHONPATH with the package installed, entry point and all."""
    source, target = tmp_path_factory.mktemp("source") / "gossip", tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, source)
    install = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    done = run_command([*install, "--target", str(target), str(source)])
    assert done.returncode == 0, done.stderr
    return f"{target}:{REPOSITORY}"


@pytest.mark.launcher
def test_it_runs_alone_by_its_short_name(site: str, tmp_path: Path) -> None:
    done = run_command(
        [*PSRING, "run", "--strategy", "gossip", *SHORT, "--out", str(tmp_path / "out")], PYTHONPATH=site
    )
    assert done.returncode == 0, done.stderr
    (record,) = records.read(tmp_path / "out")
    assert record.config.strategy == "gossip:Gossip"
    assert record.ledger is not None
    assert record.ledger.worker.counted.bytes_sent == 0


@pytest.mark.launcher
def test_it_is_swept_checked_counted_and_reported(site: str, tmp_path: Path) -> None:
    short = {flag[2:].replace("-", "_"): int(value) for flag, value in zip(SHORT[::2], SHORT[1::2], strict=True)}
    grid = [
        {"strategy": ["local", "gossip:Gossip"], "num_workers": 1},
        {"strategy": "gossip:Gossip", "num_workers": [2, 3], "check_equivalence": True},
    ]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"defaults": short, "grid": grid}))
    out = tmp_path / "out"
    done = run_command([*PSRING, "sweep", str(tmp_path / "sweep.yaml"), "--out", str(out)], PYTHONPATH=site)
    assert done.returncode == 0, done.stderr
    for record in records.read(out):
        if record.config.num_workers > 1:
            assert record.ledger is not None
            assert record.ledger.agrees
            assert record.ledger.worker.counted.bytes_sent == 8 * record.config.gpt.num_parameters
            assert record.summary is not None
            assert record.summary.convergence is not None
    for environ in ({"PYTHONPATH": site}, {}):  # also where the package is not installed
        done = run_command([*PSRING, "report", str(out)], **environ)
        assert done.returncode == 0, done.stderr
    summary = pd.read_csv(out / "summary.csv").set_index(["strategy", "num_workers"])
    assert set(summary["status"]) == {"ok"}
    assert summary.loc[("gossip:Gossip", 2), "baseline"] == "local"
    assert "gossip" in (out / "report.md").read_text()


MODULE = '''
from strategies.base import Strategy, WorkerOptimizer

class Quiet(WorkerOptimizer):
    """Says nothing of itself."""

class Unfinished(Strategy):
    """Defines none of its methods."""

number = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("module")
def test_without_a_closed_form_nothing_is_predicted() -> None:
    config = make_config({"strategy": "mine:Quiet", "num_workers": 2}, "here")
    found = predict(config)
    assert set(vars(found.worker).values()) == {None}
    assert found.server is None
    counted = RoleVolumes(Volume(8, 8, 1, 1))
    assert make_ledger(config, counted, RoleVolumes()).agrees is None
    assert config.kind.title == "Quiet"
    assert not config.exact


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.module:Class", "strategy: 'absent.module' cannot be imported (ModuleNotFoundError"),
        ("broken:Class", "strategy: 'broken' cannot be imported (ZeroDivisionError"),
        ("mine:Absent", "strategy: mine has no 'Absent'"),
        ("mine:number", "strategy: mine:number is no subclass of strategies.base.Strategy"),
        ("mine:Unfinished", "strategy: mine:Unfinished does not define prepare, step, synchronize"),
        ("gosip", "strategy: no strategy is called 'gosip'"),
    ],
)
def test_what_is_no_strategy_is_refused_in_one_line(name: str, said: str) -> None:
    with pytest.raises(BadInput) as refusal:
        make_config({"strategy": name}, "here")
    assert str(refusal.value).startswith(f"here: {said}")
    assert "\n" not in str(refusal.value)


def test_a_record_stays_readable_without_the_package() -> None:
    config = RunConfig(strategy="absent.module:Class", num_workers=2)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert catalogue.find(config.strategy).title == "Class"
