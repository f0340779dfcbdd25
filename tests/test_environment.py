"""An environment's identity holds what may change a speed, and nothing that differs from launch to launch."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import environment


@pytest.mark.parametrize(
    "name",
    [
        "HOROVOD_CYCLE_TIME", "HOROVOD_TIMELINE", "HOROVOD_CACHE_CAPACITY", "OMPI_MCA_btl_tcp_links", "NCCL_ALGO",
        "GLOO_SOCKET_IFNAME", "TORCH_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "UCX_TLS", "MALLOC_ARENA_MAX",
    ],
)  # fmt: skip
def test_a_setting_of_a_library_is_part_of_the_identity(name: str) -> None:
    assert environment.settings({name: "7"}) == {**environment.settings({}), name: "7"}


@pytest.mark.parametrize(
    "told",
    [
        {
            "OMPI_COMM_WORLD_RANK": "1",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_MCA_num_procs": "2",
            "OMPI_MCA_ess_base_jobid": "3",
        },
        {
            "HOROVOD_RANK": "0",
            "HOROVOD_SIZE": "2",
            "HOROVOD_GLOO_RENDEZVOUS_PORT": "53050",
            "HOROVOD_CONTROLLER": "gloo",
        },
        {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "9"},
    ],
)
def test_what_a_launcher_tells_its_ranks_is_not(told: dict[str, str]) -> None:
    assert environment.settings(told) == environment.settings({})


def test_a_difference_is_named() -> None:
    one = {"host": "a", "settings": {"OMP_NUM_THREADS": "1"}}
    assert environment.difference(one, one) == ""
    assert environment.difference(one, {**one, "settings": {}}) == "settings.OMP_NUM_THREADS: 1 then, unset now"
    assert environment.difference({}, one) == "host: unset then, a now"


def test_another_repositorys_variables_do_not_name_the_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = environment.commit()
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert environment.commit() == before
