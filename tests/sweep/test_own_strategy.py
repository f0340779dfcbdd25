"""A strategy of somebody else's package is run, checked, counted, swept and reported like those of the catalogue."""

from __future__ import annotations

import configparser
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from bench import records
from bench.config import BadInput, RunConfig, make_config
from bench.ledger import RoleVolumes, make_ledger, predict
from bench.report.write import write_report
from strategies import catalogue
from strategies.volume import Volume
from tests.support.processes import PSRING, REPOSITORY, run_command

PACKAGE = Path(__file__).parent.parent / "packages" / "gossip"
SHORT = {"steps": 6, "warmup_steps": 0, "batch_size": 4, "block_size": 32, "max_foreign_cpu_share": 1}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pip installs of the package: its module, and the metadata of its entry point."""
    target = tmp_path_factory.mktemp("site")
    shutil.copy(PACKAGE / "gossip.py", target)
    project = configparser.ConfigParser()  # reads this much of TOML; Python 3.10 has no tomllib
    project.read(PACKAGE / "pyproject.toml")
    (group,) = (section for section in project.sections() if section.startswith("project.entry-points."))
    points = "".join(f"{name} = {value}\n" for name, value in project[group].items())
    metadata = target / "gossip-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: gossip\nVersion: 1.0\n")
    text = f"[{group.removeprefix('project.entry-points.')}]\n{points}".replace('"', "")
    (metadata / "entry_points.txt").write_text(text)
    return target


@pytest.mark.launcher
def test_it_is_swept_checked_counted_and_reported(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = [
        {"strategy": ["local", "gossip"], "num_workers": 1},  # its short name
        {"strategy": "gossip:Gossip", "num_workers": [2, 3], "check_equivalence": True},
    ]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"defaults": SHORT, "grid": grid}))
    out = tmp_path / "out"
    sweep = [*PSRING, "sweep", str(tmp_path / "sweep.yaml"), "--out", str(out)]
    done = run_command(sweep, PYTHONPATH=f"{site}:{REPOSITORY}")
    assert done.returncode == 0, done.stderr
    found = {record.config.num_workers: record for record in records.read(out) if record.config.strategy != "local"}
    assert {record.config.strategy for record in found.values()} == {"gossip:Gossip"}
    for num_workers, record in found.items():
        assert record.ledger is not None
        assert record.ledger.agrees
        sent = 8 * record.config.gpt.num_parameters if num_workers > 1 else 0
        assert record.ledger.worker.counted.bytes_sent == sent
        assert record.summary is not None
        assert (record.summary.convergence is None) == (num_workers == 1)
    done = run_command([*PSRING, "report", str(out)])  # where the package is not installed
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(site)
    write_report(out)
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
