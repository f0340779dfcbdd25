"""Laws of launching: who a process is, and that nothing outlives its deadline or its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bench.config import BadInput, RunConfig
from bench.mpi import ALONE, RankInfo, find_launcher, is_open_mpi
from bench.nodes import layout
from bench.processes import FORKED_PSRING
from bench.rank import group
from bench.sweep import launch
from bench.sweep.launch import command, environment, launcher_flags, launcher_prefix, run, with_own_hostfile
from strategies.environment import mpi_environment
from strategies.options import Options
from tests.support.processes import alive, gone, is_rank

NAP = "import time; time.sleep(60)"
MPIRUN = ("mpirun", "prterun")  # Open MPI 5's mpirun executes prterun
SLEEPER = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {NAP!r}]); {NAP}"


def in_seconds(seconds: float) -> Callable[[], float]:
    at = time.monotonic() + seconds
    return lambda: at


@pytest.mark.parametrize(
    ("environ", "rank_info"),
    [
        ({}, RankInfo("none", 0, 1, 0)),
        (
            {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
             "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            RankInfo("mpirun", 3, 4, 1),
        ),
        (
            {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"},
            RankInfo("horovodrun", 1, 2, 1),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, RankInfo("mpirun", 1, 2, 0)),
        (
            {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "1"},
            RankInfo("srun", 5, 6, 1),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, RankInfo("none", 0, 1, 0)),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, ALONE),
        ({"PMI_RANK": "0"}, ALONE),
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "1"}, ALONE),
        (
            {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2",
             "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            RankInfo("mpirun", 3, 4, 0),
        ),
    ],
    ids=["alone", "open mpi", "horovodrun", "mpich", "srun", "batch script", "size without rank",
         "rank without size", "torchrun with one process", "mpirun in a Slurm job"],
)  # fmt: skip
def test_a_process_reads_its_rank_from_its_launchers_variables(environ: dict[str, str], rank_info: RankInfo) -> None:
    assert RankInfo.detect(environ) == rank_info


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"PMI_RANK": "one", "PMI_SIZE": "2"}, "PMI_RANK='one' is no number"),
        ({"PMI_RANK": "2", "PMI_SIZE": "2"}, "no rank and size"),
        ({"PMI_RANK": "-1", "PMI_SIZE": "2"}, "no number"),
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2"}, "torchrun"),
    ],
)
def test_variables_that_are_no_rank_and_size_are_refused(environ: dict[str, str], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        RankInfo.detect(environ)


STEP = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}


def test_one_process_is_alone_in_a_shell_of_a_slurm_step_and_several_are_not() -> None:
    assert RankInfo.of_strategy("local", STEP) == ALONE
    assert RankInfo.of_strategy("local", {**STEP, "SLURM_PROCID": "1"}).world_size == 4
    assert RankInfo.of_strategy("mpi_ring", STEP).world_size == 4


@pytest.mark.parametrize("environ", [STEP, {"PMI_RANK": "0", "PMI_SIZE": "4"}])
def test_a_launcher_that_mpi_does_not_confirm_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="say rank 0 of 4, the library that joins the ranks says rank 0 of 1"):
        group.join(["mpi_ring"], RankInfo.detect(environ), Options())


@pytest.mark.parametrize(("ranks", "cores", "naps"), [(1, 1, True), (1, 2, False), (2, 2, True), (2, 4, False)])
def test_ranks_nap_where_their_threads_outnumber_the_cores_whatever_the_strategy(
    ranks: int, cores: int, naps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "cores", lambda: cores)
    monkeypatch.setattr(launch.nap, "environment", lambda _: {"LD_PRELOAD": "nap"})
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    ring = RunConfig(strategy="ring_allreduce", num_workers=ranks)
    assert ("LD_PRELOAD" in environment(ring)) == naps
    if ranks > 1:
        served = RunConfig(strategy="parameter_server", num_workers=ranks - 1, num_servers=1)
        assert ("LD_PRELOAD" in environment(served)) == naps


def test_ranks_are_started_without_what_an_outer_launcher_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {**STEP, "HOROVOD_RANK": "0", "HOROVOD_SIZE": "2", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "h", "WORLD_SIZE": "2"}
    kept = {"SLURM_JOB_NODELIST": "n[1-4]", "HOROVOD_CYCLE_TIME": "1"}
    for name, value in {**told, **kept}.items():
        monkeypatch.setenv(name, value)
    found = environment(RunConfig(num_workers=1, strategy="local"))
    assert told.keys() & found.keys() == set()
    assert kept.items() <= found.items()


def test_the_users_mpi_settings_are_kept() -> None:
    ours = mpi_environment({})
    assert ours["OMPI_MCA_coll_tuned_allreduce_algorithm"] == "4"
    theirs = mpi_environment({"OMPI_MCA_coll_tuned_allreduce_algorithm": "3"})
    assert theirs == {**ours, "OMPI_MCA_coll_tuned_allreduce_algorithm": "3"}


def test_both_topologies_get_the_same_launcher_and_flags() -> None:
    ring = RunConfig(strategy="ring_allreduce", num_workers=3)
    server = RunConfig(strategy="parameter_server", num_workers=2, num_servers=1)
    assert launcher_prefix(ring) == launcher_prefix(server)


def test_the_launcher_gets_a_copy_of_the_host_file(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# mine\r\nlocalhost:4\r\n")
    given = RunConfig(strategy="ddp", num_workers=2, hostfile=str(tmp_path / "hosts"))
    own = with_own_hostfile(given, tmp_path / "own")
    assert Path(own.hostfile or "").read_text() == "localhost slots=4\n"
    assert own.model_copy(update={"hostfile": given.hostfile}) == given


def test_hostfile_and_interface_reach_both_launchers() -> None:
    on = {"strategy": "ring_allreduce", "num_workers": 2, "hostfile": "hosts", "network_interface": "eth7"}
    for launcher in ("mpirun", "horovodrun"):
        argv = launcher_prefix(RunConfig.model_validate({**on, "launcher": launcher}))
        assert argv[argv.index("--hostfile") + 1] == "hosts"
        assert "eth7" in argv


def test_what_cannot_be_told_to_mpich_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = RunConfig(strategy="mpi_ring", num_workers=2)
    assert launcher_flags(ring, open_mpi=False) == ["-n", "2"]
    with pytest.raises(BadInput, match=r"network_interface: .* for MPICH export FI_TCP_IFACE"):
        launcher_flags(ring.model_copy(update={"network_interface": "eth7"}), open_mpi=False)
    monkeypatch.setattr(launch, "is_open_mpi", lambda _: False)
    with pytest.raises(BadInput, match="cluster: mpirun on emulated nodes must be Open MPI's"):
        command(ring, ["run"], layout.make("lab", 2, "50mbit"))


def test_out_of_band_messages_of_one_host_need_no_interface() -> None:
    """Open MPI 5 refuses to use the loopback for them."""
    flags = launcher_flags(RunConfig(strategy="mpi_ring", num_workers=2, network_interface="lo"), open_mpi=True)
    assert flags[flags.index("btl_tcp_if_include") + 1] == "lo"
    assert "oob_tcp_if_include" not in flags


def test_fabrics_are_looked_for_only_where_there_are_other_machines() -> None:
    """Libfabric takes a second per launch to look for them."""
    ring = RunConfig(strategy="mpi_ring", num_workers=2)
    hosts = ring.model_copy(update={"hostfile": "hosts"})

    def transports(argv: list[str]) -> str:
        return argv[argv.index("btl") + 1]

    assert transports(launcher_flags(hosts, open_mpi=True)) == "^openib"
    assert transports(launcher_flags(ring, open_mpi=True, on_this_machine=True)) == "^openib,ofi,uct"
    if is_open_mpi(find_launcher("mpirun")):
        assert transports(launcher_prefix(hosts)) == "^openib"
        assert transports(launcher_prefix(ring)) == "^openib,ofi,uct"
        assert transports(command(ring, ["run"], layout.make("lab", 2, "50mbit"))) == "^openib,ofi,uct"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on PATH with a file called srun: nothing here starts it."""
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def test_srun_gets_the_transport_that_mpirun_gets(slurm: Path) -> None:
    config = RunConfig(strategy="ddp", num_workers=3, launcher="srun", network_interface="eth7")
    argv = launcher_prefix(config)
    assert argv[argv.index("--ntasks") + 1] == "3"
    assert {"OMPI_MCA_pml=ob1", "OMPI_MCA_btl=^openib", "OMPI_MCA_btl_tcp_if_include=eth7"} <= set(argv)


def test_one_rank_needs_no_launcher() -> None:
    assert command(RunConfig(), ["run"]) == [*FORKED_PSRING, "run"]


def test_no_process_outlives_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = f"PSRING_DEADLINE_{os.getpid()}"
    monkeypatch.setenv(marker, "1")
    outcome = run([sys.executable, "-c", SLEEPER], os.environ, tmp_path / "log", in_seconds(1))
    assert outcome.timed_out
    assert outcome.returncode != 0
    assert gone(f"{marker}=1")


def test_the_outcome_has_the_output(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "print('last words'); raise SystemExit(3)"]
    outcome = run(argv, os.environ, tmp_path / "log", in_seconds(60))
    assert (outcome.returncode, outcome.timed_out, outcome.output) == (3, False, "last words\n")


@pytest.mark.launcher
@pytest.mark.parametrize("victim", ["parent", "mpirun", "rank", "client", "template"])
def test_no_rank_outlives_its_parent(victim: str) -> None:
    marker = f"PSRING_ORPHAN_{victim}_{os.getpid()}"
    config = "RunConfig(strategy='parameter_server', num_workers=2, num_servers=1, steps=1000000, launcher='mpirun')"
    program = (
        "from bench.config import RunConfig; from bench.sweep import launch; from pathlib import Path; import tempfile;"
        f"config = {config}; argv = launch.command(config, ['run', *launch.run_flags(config)]);"
        "launch.run(argv, launch.environment(config), Path(tempfile.mkdtemp(), 'log'), lambda: float('inf'))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, marker: "1"})
    ranks = wait_for_ranks(marker, count=3)
    launcher = next(p for p in psutil.Process(parent.pid).children() if Path(p.cmdline()[0]).name in MPIRUN)
    client = next(p for p in alive(f"{marker}=1") if "run" in p.cmdline() and "fork_client.py" in str(p.cmdline()))
    target = {
        "parent": parent.pid, "mpirun": launcher.pid, "rank": ranks[1].pid, "client": client.pid,
        "template": ranks[0].ppid(),
    }[victim]  # fmt: skip
    os.kill(target, signal.SIGKILL)
    parent.wait(30)
    assert gone(f"{marker}=1")


def wait_for_ranks(marker: str, count: int) -> list[psutil.Process]:
    """Return the ranks once all are training."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ranks = [p for p in alive(f"{marker}=1") if is_rank(p)]
        if len(ranks) >= count and all(p.num_threads() > 3 for p in ranks):
            return ranks
        time.sleep(0.2)
    raise AssertionError(f"only {len(ranks)} ranks came up")
