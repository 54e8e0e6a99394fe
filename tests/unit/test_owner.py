"""A process is gone only where that can be seen: not another machine's, and not one with a reused pid."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from modelbake.owner import is_gone, owner_of, this_process


def test_this_process_is_there() -> None:
    assert not is_gone(this_process())
    assert not is_gone(owner_of(os.getppid()))


@pytest.mark.control("crash")
def test_a_process_that_has_ended_is_gone() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        owner = owner_of(process.pid)
        assert not is_gone(owner)
        process.kill()
    assert is_gone(owner)


def test_a_pid_that_was_taken_again_is_another_process() -> None:
    place, _, started = this_process().rpartition("/")
    assert is_gone(f"{place}/{int(started) - 1}")


def test_a_program_with_any_name(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        owner = owner_of(process.pid)
        assert not is_gone(owner)
        process.kill()
    assert is_gone(owner)


@pytest.mark.parametrize(
    "owner",
    [
        "",
        "1",
        "nonsense",
        "x{here}",
        "00000000-0000-0000-0000-000000000000/4026531836/1/1",
        "../../../../etc/1/2/3",
    ],
)
def test_what_cannot_be_seen_from_here_is_not_known_to_be_gone(owner: str) -> None:
    # Not in the list above, which has to be the same in every process of a parallel run.
    owner = owner.replace("{here}", this_process())
    assert not is_gone(owner)
