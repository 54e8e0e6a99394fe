"""Files that are whole or not there: what a killed run leaves is removed, what another run writes is not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelbake.errors import DiskFull
from modelbake.writing import exclusively, new_file, private_folder, replace_file
from tests.servers.environment import ROOT
from tests.servers.small_disk import small_disk

HOLDER = """
import sys, time
from pathlib import Path
from modelbake.writing import new_file, private_folder
where = Path(sys.argv[1])
with new_file(where, ".target.", ".tmp") as (file, path), private_folder("private-", where) as folder:
    (folder / "secret").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


def held(folder: Path) -> subprocess.Popen[str]:
    """Start a process that is in the middle of writing a file and of using a private folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in folder.iterdir())


@pytest.mark.promise("crash")
def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    assert len(names(tmp_path)) == 2, "control: it left a file and a folder"
    replace_file(tmp_path / "target", b"whole")
    with private_folder("private-", tmp_path) as folder:
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700
    assert names(tmp_path) == ["target"]
    assert (tmp_path / "target").read_bytes() == b"whole"


@pytest.mark.promise("at-once")
def test_what_another_run_is_writing_is_left_to_it(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        before = names(tmp_path)
        replace_file(tmp_path / "target", b"whole")
        with private_folder("private-", tmp_path):
            pass
        assert names(tmp_path) == sorted([*before, "target"])
        process.terminate()


def test_what_is_not_a_temporary_file_stays(tmp_path: Path) -> None:
    """Names that only resemble one, and links that lead elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    (tmp_path / ".target.x.tmp").symlink_to(elsewhere)
    (tmp_path / ".other.x.tmp").touch()
    (tmp_path / ".target.x").touch()
    replace_file(tmp_path / "target", b"whole")
    assert elsewhere.read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 5


def test_a_name_with_signs_of_patterns(tmp_path: Path) -> None:
    (tmp_path / ".a.x.tmp").touch()
    replace_file(tmp_path / "[a]", b"whole")
    assert (tmp_path / ".a.x.tmp").exists()


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "target"
    target.touch(mode)
    target.chmod(mode)
    replace_file(target, b"new")
    assert target.stat().st_mode & 0o777 == mode


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), new_file(tmp_path, "x") as (file, _):
        file.write(b"half")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.promise("disk-full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        target = disk.path / "target"
        replace_file(target, b"old")
        with disk.full(), pytest.raises(DiskFull) as caught:
            replace_file(target, bytes(5000))
        assert caught.value.subject == str(target)
        assert "5,000 bytes" in caught.value.message
        assert target.read_bytes() == b"old"
        assert [path.name for path in disk.path.iterdir()] == ["target"]
        replace_file(target, bytes(5000))
        assert target.stat().st_size == 5000, "control: with some room it goes"


@pytest.mark.promise("at-once")
def test_one_at_a_time(tmp_path: Path) -> None:
    """Another process finds the folder taken, and free again afterwards."""
    asking = "flock(os.open(sys.argv[1], os.O_RDONLY), LOCK_EX | LOCK_NB)"
    program = f"import os, sys; from fcntl import flock, LOCK_EX, LOCK_NB; {asking}"
    command = [sys.executable, "-c", program, str(tmp_path)]
    with exclusively(tmp_path):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "BlockingIOError" in refused.stderr
    subprocess.run(command, check=True)
