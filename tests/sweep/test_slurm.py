"""Laws of batch scripts and manifests: an allocation is large enough for every cell and runs the given sweep."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bench.arguments import parse
from bench.config import BadInput, RunConfig
from bench.sweep.file import read_sweep
from bench.sweep.slurm import batch_script

SCRIPTS = Path(__file__).parents[2] / "scripts"
CELLS = [
    RunConfig(),
    RunConfig(strategy="ring_allreduce", num_workers=4, launcher="srun"),
    RunConfig(strategy="parameter_server", num_workers=4, num_servers=2, num_threads=3),
]


def directives(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, flags=re.MULTILINE))


def test_a_job_has_as_many_tasks_as_its_largest_cell_ranks(tmp_path: Path) -> None:
    asked = directives(batch_script(CELLS, Path("my.yaml"), tmp_path / "out"))
    assert (asked["ntasks"], asked["cpus-per-task"]) == ("6", "3")
    assert asked["signal"].startswith("B:TERM@")  # exec: the signal reaches psring, which ends its ranks


def test_a_job_runs_the_given_sweep(tmp_path: Path) -> None:
    file, out = tmp_path / "my sweep.yaml", tmp_path / "out"
    command = shlex.split(batch_script(CELLS, file, out, ["--budget=2h"]).splitlines()[-1])
    arguments = parse(command[command.index("sweep") :])
    assert (arguments.file, arguments.out, arguments.budget) == (file, out, "2h")


@pytest.mark.parametrize("name", ["a b", "50%", "%j", "it's", "a;b"])
def test_a_path_is_one_value_of_a_directive_and_one_word_of_the_command(tmp_path: Path, name: str) -> None:
    script = batch_script(CELLS, tmp_path / name, tmp_path / name)
    assert directives(script)["output"] == f'"{tmp_path}/{name}.slurm.log"'.replace("%", "%%")
    assert shlex.split(script.splitlines()[-1]).count(str(tmp_path / name)) == 2


@pytest.mark.parametrize("name", ["a\n#SBATCH --uid=0", "a\r", "a\tb", "a\x1b"])
def test_a_path_that_would_become_lines_is_refused(tmp_path: Path, name: str) -> None:
    for file, out in ((tmp_path / name, tmp_path), (tmp_path, tmp_path / name)):
        with pytest.raises(BadInput, match="cannot be printed"):
            batch_script(CELLS, file, out)


def test_horovodrun_is_refused_in_a_job() -> None:
    cell = RunConfig(strategy="ring_allreduce", num_workers=2, launcher="horovodrun")
    with pytest.raises(BadInput, match="use launcher: srun or mpirun"):
        batch_script([cell], Path("my.yaml"), Path("out"))


def test_the_command_writes_a_script_and_nothing_else(psring: Callable[..., object], tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("{grid: [{strategy: ddp, num_workers: 2}]}")
    ended = psring("sweep", tmp_path / "my.yaml", "--out", tmp_path / "out", "--slurm", tmp_path / "job.sbatch")
    assert ended.returncode == 0, ended.stderr
    assert directives((tmp_path / "job.sbatch").read_text())["ntasks"] == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.sbatch", "my.yaml"]


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.s*")), ids=lambda path: path.name)
def test_every_script_has_valid_shell_syntax(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False).stderr == ""


def test_the_batch_example_has_the_directives_of_the_generated_one() -> None:
    generated = directives(batch_script(CELLS, Path("my.yaml"), Path("out")))
    assert directives((SCRIPTS / "slurm.sbatch").read_text()).keys() <= generated.keys()


def test_the_kubernetes_example_is_an_mpijob_with_enough_slots() -> None:
    job = yaml.safe_load((SCRIPTS / "mpijob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    replicas = job["spec"]["mpiReplicaSpecs"]
    assert set(replicas) == {"Launcher", "Worker"}
    (launcher,) = replicas["Launcher"]["template"]["spec"]["containers"]
    words = shlex.split(launcher["command"][-1])
    arguments = parse(words[words.index("sweep") :])
    cells = read_sweep(SCRIPTS.parent / arguments.file).runs("example")
    assert job["spec"]["slotsPerWorker"] * replicas["Worker"]["replicas"] >= max(c.world_size for c in cells)
