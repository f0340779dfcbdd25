"""Laws of the emulated cluster: names, rates, isolation, complete removal."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import links, records
from bench.config import BadInput
from bench.mpi import find_launcher
from bench.nodes import cluster, layout
from bench.nodes.layout import NAMESPACES, Cluster
from bench.nodes.probe import TOLERANCE
from tests.support.processes import PSRING, make_environ, run_command


def can_make_namespaces() -> bool:
    """Whether this user and this kernel can make shaped links."""
    probe = layout.make(f"p{os.getpid()}", 1, "100mbit")
    try:
        cluster.up(probe)
    except (BadInput, OSError):
        return False
    cluster.down(probe.name)
    return True


needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not can_make_namespaces(), reason="making network namespaces needs root and tbf"
)


@pytest.fixture
def lab() -> Iterator[Cluster]:
    """Three nodes, up for one test."""
    made = layout.make(f"t{os.getpid()}", 3, "n0=400mbit,*=200mbit")
    cluster.up(made)
    yield made
    cluster.down(made.name)
    assert left_over(made.name) == []


def left_over(name: str) -> list[str]:
    return [path.name for path in NAMESPACES.glob(f"psring-{name}-*")]


def on(lab: Cluster, node: str, *command: str) -> list[str]:
    return [*PSRING, "cluster", "exec", "--name", lab.name, node, "--", *command]


@given(st.integers(1, 9999), st.sampled_from(["kbit", "mbit", "gbit"]))
def test_a_rate_is_read_as_bits_per_second(number: int, unit: str) -> None:
    assert links.parse_rate(f"{number}{unit}") == number * links.UNITS[unit]


def test_rates_can_differ_per_node() -> None:
    assert links.parse_links("n1=1gbit,*=50mbit", 3) == (50_000_000, 1_000_000_000, 50_000_000)
    assert links.parse_links("200mbit", 2) == (200_000_000, 200_000_000)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("lab", 4, "0mbit"), "is not a rate from 1kbit"),
        (("lab", 4, "fast"), "write 200mbit"),
        (("lab", 4, "n9=1gbit,*=1mbit"), "no node 'n9'"),
        (("lab", 4, "n0=1gbit"), "no rate for n1"),
        (("lab", 4, "1mbit", 0, "soon"), "write 500us, 2ms or 1s"),
        (("lab", 4, "1mbit", 0, None, "vegas"), "neither reno nor cubic"),
        (("lab", 300, "1mbit"), "300 is not from 1 to"),
        (("lab", 0, "1mbit"), "0 is not from 1 to"),
        (("lab", 2, "1mbit", 3), "3 is not from 0 to 2"),
        (("lab", 2, "1mbit", -1), "-1 is not from 0 to 2"),
        (("../lab", 2, "1mbit"), "small letters and digits"),
    ],
)
def test_an_impossible_cluster_is_refused_in_one_line(values: tuple[Any, ...], said: str) -> None:
    with pytest.raises(BadInput) as refusal:
        layout.make(*values)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_without_permission_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "has_privileges", lambda: False)
    with pytest.raises(BadInput, match="needs root"):
        cluster.up(layout.make("denied", 2, "1mbit"))
    assert left_over("denied") == []


@needs_namespaces
def test_a_node_has_its_own_name_and_knows_the_others(lab: Cluster) -> None:
    program = "import socket; print(socket.gethostname(), socket.gethostbyname('n2'))"
    ended = run_command(on(lab, "n1", sys.executable, "-c", program))
    assert ended.stdout.split() == ["n1", lab.address("n2")], ended.stderr


@needs_namespaces
def test_two_clusters_do_not_see_each_other(lab: Cluster) -> None:
    other = layout.make(f"u{os.getpid()}", 2, "100mbit")
    cluster.up(other)
    try:
        assert {line.split()[0] for line in cluster.describe()} >= {lab.name, other.name}
        cluster.down(other.name)
        assert len(left_over(lab.name)) == 4
    finally:
        cluster.down(other.name)


@needs_namespaces
def test_a_second_up_is_refused_and_changes_nothing(lab: Cluster) -> None:
    with pytest.raises(BadInput, match="is up already"):
        cluster.up(lab)
    assert layout.find(lab.name) == lab
    assert len(left_over(lab.name)) == 4


@needs_namespaces
def test_down_kills_processes_on_the_nodes(lab: Cluster) -> None:
    sleeper = subprocess.Popen(on(lab, "n1", "sleep", "60"))
    inodes = {(NAMESPACES / lab.namespace("n1")).stat().st_ino}
    deadline = time.monotonic() + 20
    while not cluster.processes(inodes) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert cluster.processes(inodes)
    cluster.down(lab.name)
    assert sleeper.wait(10) == -9
    assert left_over(lab.name) == []
    with pytest.raises(BadInput, match="is not up"):
        layout.find(lab.name)


@needs_namespaces
def test_up_removes_what_a_killed_up_left(lab: Cluster) -> None:
    (layout.STATE / f"{lab.name}.json").unlink()  # as if killed before it was done
    cluster.up(lab)
    assert layout.find(lab.name) == lab


SWEEP = """
defaults: {model: gpt-micro, steps: 4, warmup_steps: 1, compute: none, patience_s: 0, max_foreign_cpu_share: 1}
grid:
  - {strategy: [ring_allreduce, ddp], num_workers: 3}
  - {strategy: ring_allreduce, num_workers: 3, launcher: horovodrun}
  - {strategy: parameter_server, num_workers: 2, num_servers: 1}
  - {strategy: local, block_size: 16, batch_size: 1, compute: real, link: null}
cluster: {num_nodes: 3, link: "server=400mbit,*=200mbit"}
"""


@needs_namespaces
@pytest.mark.launcher
def test_a_sweep_runs_on_nodes_under_every_launcher_and_the_kernel_confirms_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    out = tmp_path / "out"
    ended = run_command([*PSRING, "sweep", str(tmp_path / "sweep.yaml"), "--out", str(out)])
    assert ended.returncode in (0, 1), ended.stderr  # 1: the guard found this machine too busy
    done = records.read(out)
    assert [record.status for record in done if record.status not in ("ok", "invalid")] == [], ended.stderr
    assert len({record.cell for record in done}) == 5  # a launch that the guard rejects is repeated
    for record in done:
        assert ("emulated" in record.labels) == (record.config.link is not None)
        assert record.summary is not None
        assert record.summary.num_nodes == (record.config.world_size if record.config.link else 1)
        assert record.ledger is not None
        assert "the wire carried" not in record.reason
        if record.config.num_workers > 1:
            assert record.ledger.wire_ratios()
            assert record.ledger.wire_counted_by == "interface"
        for name, ratio in record.ledger.wire_ratios().items():
            assert 0.99 <= ratio <= 1.06, (record.config.strategy, name)
    assert left_over("sweep") == []  # made in a mount namespace of their own


def test_the_command_line_has_one_thread_before_it_enters_namespaces() -> None:
    program = "import bench.cli, os; print(len(os.listdir('/proc/self/task')))"
    assert run_command([sys.executable, "-c", program]).stdout == "1\n"


def without_root(argv: list[str]) -> list[str]:
    """The command without root's capabilities, except those for a user namespace of its own."""
    return ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all", *argv]


def can_be_without_root() -> bool:
    probe = without_root([*PSRING, "cluster", "shell", "--", "true"])
    return shutil.which("setpriv") is not None and run_command(probe).returncode == 0


@needs_namespaces
def test_without_root_a_cluster_can_be_made_in_psring_cluster_shell(tmp_path: Path) -> None:
    if not can_be_without_root():
        pytest.skip("this kernel does not allow user namespaces, or setpriv is missing")
    psring = shlex.join(PSRING)
    script = f"""
        {psring} cluster up --num-nodes 2 --link 50mbit &&
        {psring} cluster exec n0 -- {find_launcher("mpirun")} -n 2 -H n0,n1 --bind-to none hostname &&
        {psring} cluster down && {psring} cluster status
    """
    ended = run_command(without_root([*PSRING, "cluster", "shell", "--", "sh", "-c", script]))
    assert sorted(ended.stdout.split("\n")[1:3]) == ["n0", "n1"], ended.stderr
    assert ended.stdout.splitlines()[-1] == "no cluster is up"
    refused = run_command(without_root([*PSRING, "cluster", "up", "--num-nodes", "2", "--link", "50mbit"]))
    assert refused.returncode == 2
    assert "needs root" in refused.stderr


@needs_namespaces
@pytest.mark.launcher
def test_without_root_a_sweep_makes_its_nodes(tmp_path: Path) -> None:
    if not can_be_without_root():
        pytest.skip("this kernel does not allow user namespaces, or setpriv is missing")
    cell = {
        "strategy": "parameter_server",
        "num_servers": 1,
        "compute": "none",
        "steps": 4,
        "patience_s": 0,
        "max_foreign_cpu_share": 1,
    }
    content = {"grid": [cell], "cluster": {"num_nodes": 2, "link": "50mbit"}}
    (tmp_path / "sweep.yaml").write_text(json.dumps(content))
    ended = run_command(without_root([*PSRING, "sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]))
    record = records.read(tmp_path / "out")[-1]  # a launch that the guard rejects is repeated
    assert "emulated" in record.labels, ended.stdout + ended.stderr


@needs_namespaces
def test_a_link_carries_its_rate_and_no_more(lab: Cluster) -> None:
    program = (
        "from bench.nodes import layout, probe; import sys;"
        "print(probe.best_ratio(lambda: probe.fork_ring(layout.find(sys.argv[1]))))"
    )
    ended = run_command([sys.executable, "-c", program, lab.name])
    assert float(ended.stdout) > 1 - TOLERANCE, ended.stderr  # slower is noise; faster would be an unshaped link


@needs_namespaces
@pytest.mark.launcher
def test_faults_end_in_one_clear_line_and_leave_nothing() -> None:
    script = Path(__file__).parents[2] / "scripts/check_cluster_faults.py"
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=500, check=False,
        env=make_environ(),  # without what an MPI library of this process has set in the C environment
    )  # fmt: skip
    last = (ended.stdout.splitlines() or [""])[-1]
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert last.endswith("left behind: 0 processes, 0 namespaces, 0 changed sysctls")


def test_bad_actions_are_refused_in_one_line(psring: Callable[..., object]) -> None:
    for arguments, said in (
        (["exec", "--name", "nowhere", "n0", "--", "true"], "is not up"),
        (["exec", "n0"], "no command"),
        (["exec", "--name", "../x", "n0", "--", "true"], "small letters and digits"),
        (["down", "--name", "*"], "small letters and digits"),
        (["up", "--num-nodes", "2", "--link", "0mbit"], "is not a rate from 1kbit"),
    ):
        ended = psring("cluster", *arguments)
        assert ended.returncode == 2, ended.stderr
        assert said in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
