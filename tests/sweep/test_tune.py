"""Laws of tuning: which sizes are measured, when it stops, and that a run uses the fastest unless a size is given."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from bench import records
from bench.config import BadInput, RunConfig, make_config, read_tuned
from bench.intervals import Estimate
from bench.mpi import RankInfo
from bench.records import RunRecord
from bench.sweep import tune
from bench.sweep.file import Sweep
from strategies.catalogue import CATALOGUE
from tests.support.synthetic import make_record

GIVEN = {"parameter_server": {"num_servers": 1}}


def config_of(strategy: str, **values: object) -> RunConfig:
    return make_config({"strategy": strategy, "compute": "none", **GIVEN.get(strategy, {}), **values}, "test")


def write(path: Path, **sizes: int) -> str:
    path.write_text(yaml.safe_dump({name: {"knobs": {CATALOGUE[name].tunes: size}} for name, size in sizes.items()}))
    return str(path)


@pytest.mark.parametrize("model", ["gpt-nano", "gpt-mini", "gpt2"])
@pytest.mark.parametrize("strategy", [name for name, entry in CATALOGUE.items() if entry.tunes])
def test_at_most_one_size_does_not_split_the_gradients(strategy: str, model: str) -> None:
    config = config_of(strategy, model=model)
    knob, candidates = tune.make_candidates(config)
    sizes = [getattr(candidate, knob) for candidate in candidates]
    assert sizes == sorted(set(sizes))
    assert sum(size >= config.wire_bytes for size in sizes) <= 1
    assert all(candidate.model_copy(update={knob: 1, **tune.STEPS}) == config.model_copy(
        update={knob: 1, **tune.STEPS}) for candidate in candidates)  # fmt: skip


def test_what_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(BadInput, match="independent has no size to tune"):
        tune.make_candidates(config_of("independent"))
    with pytest.raises(BadInput, match="chunk_bytes is the knob to be tuned"):
        tune.make_candidates(config_of("parameter_server", chunk_bytes=5000))


@pytest.mark.parametrize("round_s", [1.0, 20.0, 1000.0])
def test_every_round_has_every_size_and_ends_within_the_budget(round_s: float) -> None:
    _, candidates = tune.make_candidates(config_of("mpi_ring", model="gpt-mini"))
    began: list[list[RunConfig]] = []

    def round_of(configs: Sequence[RunConfig], _: int) -> tuple[list[float | None], float]:
        began.append(list(configs))
        return [float(config.segment_bytes) for config in configs], round_s

    samples = tune.measure(candidates, round_of)
    assert all(sorted(configs, key=candidates.index) == candidates for configs in began)
    assert all(set(s) == {float(c.segment_bytes)} for c, s in zip(candidates, samples, strict=True))
    assert len({len(s) for s in samples} | {len(began)}) == 1
    assert 1 <= len(began) <= tune.ROUNDS
    assert len(began) == 1 or len(began) * round_s <= tune.BUDGET_S


DEFAULT = RunConfig.model_fields["bucket_bytes"].default


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({1024: Estimate(2.0, 1.0, 3.0), 2048: Estimate(1.0, 0.9, 1.1)}, 2048),  # the default has no ok run
        ({DEFAULT: Estimate(2.0, 1.8, 2.2), 2048: Estimate(1.0, 0.9, 1.1)}, 2048),
        ({DEFAULT: Estimate(2.0, 1.8, 2.2), 2048: Estimate(1.9, 1.5, 2.0)}, DEFAULT),  # within the noise
        ({DEFAULT: Estimate(2.0, np.nan, np.nan), 2048: Estimate(1.0, np.nan, np.nan)}, DEFAULT),  # one round
    ],
)
def test_a_size_other_than_the_default_is_chosen_only_beyond_the_noise(found: dict[int, Estimate], chosen: int) -> None:
    assert tune.choose("bucket_bytes", found) == chosen


def test_the_entry_has_the_chosen_size_and_its_origin() -> None:
    found = {1024: Estimate(2.0, 1.0, 3.0), 2048: Estimate(1.0, 0.9, 1.1)}
    entry = tune.make_entry(config_of("ddp", num_workers=3), "bucket_bytes", found, 5)
    assert entry["knobs"] == {"bucket_bytes": 2048}
    assert entry["config"] == {"compute": "none", "num_workers": 3}
    assert entry["environment"]["digest"]


def test_only_ok_runs_can_win() -> None:
    knob, candidates = tune.make_candidates(config_of("mpi_ring", model="gpt-mini"))
    record = make_record(tokens_per_s=1000)
    assert tune.step_s_of(record) is not None
    assert tune.step_s_of(record.model_copy(update={"status": "invalid"})) is None
    samples = tune.measure(candidates, lambda configs, _: ([None, *(2.0 for _ in configs[1:])], 1000.0))
    assert samples[0] == []
    assert getattr(candidates[0], knob) not in tune.intervals(knob, candidates, samples)
    with pytest.raises(SystemExit, match="no run was valid"):
        tune.intervals(knob, candidates, [[] for _ in candidates])


def test_the_printed_path_is_the_given_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "measure", lambda candidates, _: [[1.0] for _ in candidates])
    out, printed = tmp_path / "tuned[v2].yaml", io.StringIO()
    tune.tune(config_of("mpi_ring", num_workers=2), RankInfo.detect({}), out, Console(file=printed, width=200))
    assert f"{out}: --tuned {out} sets segment_bytes" in printed.getvalue()


def test_a_size_that_no_network_was_measured_for_is_printed_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(sweep: Sweep, *_: object) -> list[RunRecord]:
        return [make_record(**config.model_dump(exclude_defaults=True)) for config in sweep.runs("")]

    monkeypatch.setattr(tune, "run_sweep", run)
    printed = io.StringIO()
    config = config_of("mpi_ring", num_workers=2)
    tune.tune(config, RankInfo.detect({}), tmp_path / "tuned.yaml", Console(file=printed, width=200))
    assert "loopback: all ranks on one machine: messages cross memory" in printed.getvalue()


def test_a_tuned_knob_holds_unless_another_is_given(tmp_path: Path) -> None:
    tuned = write(tmp_path / "tuned.yaml", ddp=7000, mpi_ring=5000)
    assert config_of("ddp", tuned=tuned).bucket_bytes == 7000
    assert config_of("mpi_ring", tuned=tuned).segment_bytes == 5000
    assert config_of("ddp", tuned=tuned, bucket_bytes=9).bucket_bytes == 9
    assert make_config({"tuned": tuned}, "test").tuned == tuned
    sweep = Sweep(defaults={"tuned": tuned, "num_workers": 2}, grid=[{"strategy": "ddp", "bucket_bytes": 11}])
    assert [config.bucket_bytes for config in sweep.runs("test")] == [11]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{}", "has no ddp"),
        ("[1]", "is no file of psring tune"),
        ("{ddp: 3}", "is no file"),
        ("a: b: c", "line 1: not YAML"),
        ("{ddp: {knobs: {batch_size: 4}}}", "batch_size. is no knob that psring tune sets"),
        ("{ddp: {knobs: {bucket_bytes: 1e21}}}", "ddp: bucket_bytes: "),
    ],
)
def test_a_bad_tuned_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "tuned.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=complaint):
        config_of("ddp", tuned=str(path))
    with pytest.raises(BadInput, match="there is no file"):
        config_of("ddp", tuned=str(tmp_path / "missing.yaml"))


@pytest.mark.launcher
def test_tune_under_mpirun_and_run_with_what_it_found(
    mpirun: Callable[..., object], psring: Callable[..., object], tmp_path: Path
) -> None:
    tuned = tmp_path / "tuned.yaml"
    server = ["--strategy", "parameter_server", "--num-servers", 1]
    ended = mpirun(2, "tune", *server, "--out", tuned)
    assert ended.returncode == 0, ended.stderr
    size = read_tuned(str(tuned))["parameter_server"]["knobs"]["chunk_bytes"]
    ended = mpirun(2, "run", *server, "--compute", "none", "--steps", 2, "--tuned", tuned, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    (record,) = records.read(tmp_path / "out")
    assert (record.config.chunk_bytes, record.config.tuned) == (size, str(tuned))
    ended = mpirun(1, "tune", "--strategy", "ring_allreduce", "--out", tuned)
    assert ended.returncode == 2
    assert "once per process" in ended.stderr


def test_runs_that_do_not_count_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size whose runs were all rejected is not dropped in silence."""
    config = config_of("mpi_ring", num_workers=2, model="gpt-mini")
    smallest = tune.make_candidates(config)[1][0].segment_bytes

    def run(sweep: Sweep, *_: object) -> list[RunRecord]:
        records = [make_record(**config.model_dump(exclude_defaults=True)) for config in sweep.runs("")]
        rejected = {"status": "invalid", "rejected": True, "reason": "other processes took 40 %"}
        return [r.model_copy(update=rejected) if r.config.segment_bytes == smallest else r for r in records]

    monkeypatch.setattr(tune, "run_sweep", run)
    printed = io.StringIO()
    tune.tune(config, RankInfo.detect({}), tmp_path / "tuned.yaml", Console(file=printed, width=200))
    assert f"no run of size {smallest} was valid: other processes took 40 %" in printed.getvalue()
