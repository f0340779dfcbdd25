"""Laws of temporary folders: they go with their process, and what a killed one left goes with the next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench import private
from tests.support.processes import AT_FIRST

MAKE = "import sys; from pathlib import Path; from bench import private; print(private.make_folder(Path(sys.argv[1])))"


def start(parent: Path, then: str) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that makes a folder with a file in it; return it and the folder."""
    argv = [sys.executable, "-c", f"{MAKE}; sys.stdout.flush(); {then}", str(parent)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=AT_FIRST)
    assert process.stdout
    folder = Path(process.stdout.readline().strip())
    (folder / "segment").write_text("x")
    return process, folder


def test_a_folder_goes_with_its_process_and_a_killed_ones_with_the_next(tmp_path: Path) -> None:
    lives, used = start(tmp_path, "input()")
    killed, left = start(tmp_path, "input()")
    killed.kill()
    killed.communicate()
    assert left.exists()
    ended, own = start(tmp_path, "input()")
    assert (left.exists(), used.exists(), own.exists()) == (False, True, True)
    ended.communicate("\n")
    assert not own.exists()
    lives.kill()
    lives.communicate()
    assert private.remove_abandoned(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "elsewhere/file").write_text("x")
    (tmp_path / f"{private.PREFIX}link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / f"{private.PREFIX}file").write_text("x")
    (tmp_path / f"{private.PREFIX}shared").mkdir(mode=0o755)  # not made by make_folder
    before = sorted(tmp_path.rglob("*"))
    assert private.remove_abandoned(tmp_path) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_rank_keeps_the_users_own_settings() -> None:
    name = "OMPI_MCA_osc_sm_backing_directory"
    found = private.shared_memory_settings({name: "/mine"})
    assert found.pop(name, "/mine") == "/mine"
    assert all(Path(folder).parent == private.SHARED_MEMORY for folder in found.values())


def test_a_launcher_of_other_hosts_has_its_own_files_in_a_private_folder() -> None:
    found = private.session_settings({})
    assert set(found.values()) == {str(private.temporary_folder())}
    assert not any("remote" in name or name == "TMPDIR" for name in found)  # other hosts have no such folder
    assert private.session_settings({"PRTE_MCA_prte_tmpdir_base": "/mine"}) == {}
